# The daemon in an image that has no shell and no packages: the program, the C library that it is
# linked with, and the certificates of public authorities.
#
#     docker build --tag celeriac .
#     docker build --target wheel --output dist .    the Python package, as `make wheel`
#
# The target `site` is the Django project of `docker-compose.yml`.

FROM rust:1.95.0-slim-trixie AS build
WORKDIR /src

# Only the dependencies, which take minutes to compile. This layer is reused until they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches \
    && echo 'fn main() {}' | tee src/main.rs benches/decode.rs \
    && touch src/lib.rs \
    && cargo build --locked --release

COPY build.rs ./
COPY migrations/ migrations/
COPY src/ src/
# What `celeriac --version` shows: git log -1 --abbrev=7 --date=short --format='%h %cd'
ARG CELERIAC_COMMIT
ENV CELERIAC_COMMIT=$CELERIAC_COMMIT
# Cargo compares modification times, and the files of a checkout may be older than the placeholders.
RUN touch src/main.rs src/lib.rs && cargo build --locked --release

# The files of the image.
RUN mkdir -p /root-fs/etc/ssl/certs /root-fs/usr/local/bin /root-fs/usr/share/doc/celeriac \
    && install -d -m 1777 /root-fs/tmp \
    && cp target/release/celeriac /root-fs/usr/local/bin/ \
    && ldd target/release/celeriac | grep -o '/[^ ]*' \
        | xargs cp --parents --dereference --target-directory /root-fs \
    && cp /etc/ssl/certs/ca-certificates.crt /root-fs/etc/ssl/certs/ \
    && echo 'hosts: files dns' > /root-fs/etc/nsswitch.conf \
    && echo 'celeriac:x:65532:65532::/:/sbin/nologin' > /root-fs/etc/passwd \
    && echo 'celeriac:x:65532:' > /root-fs/etc/group
COPY LICENSE-APACHE LICENSE-MIT /root-fs/usr/share/doc/celeriac/


FROM build AS build-wheel
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv
COPY integration/requirements/wheel.txt ./
RUN /venv/bin/pip install --no-cache-dir --requirement wheel.txt
COPY pyproject.toml README.md LICENSE-APACHE LICENSE-MIT ./
COPY python/ python/
# With the same options as above, so that Cargo reuses the compiled program.
RUN /venv/bin/maturin build --release --locked --strip false --out /dist

FROM scratch AS wheel
COPY --from=build-wheel /dist/ /


FROM python:3.13.14-slim-trixie AS site
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 65532 site && useradd --uid 65532 --gid site --no-create-home site
WORKDIR /site
COPY integration/compose/requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt
RUN --mount=type=bind,from=wheel,target=/wheel pip install --no-cache-dir /wheel/*.whl
COPY integration/compose/manage.py ./
COPY integration/compose/demo/ demo/
USER 65532:65532


FROM scratch AS celeriac
LABEL org.opencontainers.image.title="Celeriac" \
      org.opencontainers.image.description="Puts the results of Celery tasks into a Django project's database" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /root-fs/ /
# A numeric id, so that Kubernetes can verify that it is not root.
USER 65532:65532
# For the health check. 0.0.0.0:9180 lets others read the metrics too.
ENV CELERIAC_LISTEN=127.0.0.1:9180
EXPOSE 9180
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s \
    CMD ["/usr/local/bin/celeriac", "health"]
ENTRYPOINT ["/usr/local/bin/celeriac"]
CMD ["run"]
