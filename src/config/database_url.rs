//! The database URL, in the forms that dj-database-url accepts.

use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::Url;

use crate::diagnosis::TlsFiles;

/// The kind of database that a URL names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB.
    Mysql,
    /// SQLite.
    Sqlite,
}

/// The address of the database and the login. Its `Debug` and `Display` never show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    kind: DatabaseKind,
    url: Url,
    path: PathBuf,
}

const EXAMPLE: &str = "write for example postgres://user:password@host:5432/name, \
                       mysql://user:password@host:3306/name or sqlite:////path/to/db.sqlite3";

/// Parameters of Django or its database drivers that Celeriac ignores.
const DJANGO_ONLY: [&str; 8] = [
    "conn_max_age",
    "conn_health_checks",
    "disable_server_side_cursors",
    "atomic_requests",
    "init_command",
    "charset",
    "engine",
    "pool",
];

impl DatabaseUrl {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// Returns a text that says what is wrong and how to fix it, without repeating the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| format!("has no scheme: {EXAMPLE}"))?;
        let kind = match scheme {
            "postgres" | "postgresql" | "pgsql" | "postgis" => DatabaseKind::Postgres,
            "mysql" | "mysql2" | "mysqlgis" | "mariadb" => DatabaseKind::Mysql,
            "sqlite" | "sqlite3" | "spatialite" => return Self::sqlite(rest),
            _ => return Err(format!("{scheme}:// is not a database that is supported: {EXAMPLE}")),
        };
        let scheme = if kind == DatabaseKind::Mysql { "mysql" } else { "postgres" };
        let mut url = Url::parse(&format!("{scheme}://{rest}"))
            .map_err(|error| format!("is not a URL ({error}): {EXAMPLE}"))?;
        super::parse::check_login(&url)?;
        if url.path().trim_matches('/').is_empty() {
            return Err(format!("names no database after the host: {EXAMPLE}"));
        }
        let parameters = parameters(&url, kind)?;
        let has = |wanted| parameters.iter().any(|(name, _)| name == wanted);
        if has("ssl-cert") != has("ssl-key") {
            let [certificate, key] = match kind {
                DatabaseKind::Postgres => ["sslcert", "sslkey"],
                _ => ["ssl-cert", "ssl-key"],
            };
            return Err(format!(
                "has only one of {certificate} and {key}, and a client's certificate needs its \
                 key: write both"
            ));
        }
        url.set_query(None);
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        Ok(Self { kind, url, path: PathBuf::new() })
    }

    /// Parses what follows `sqlite://`: `/relative` or `//absolute`.
    fn sqlite(rest: &str) -> Result<Self, String> {
        let path = rest.split('?').next().unwrap_or_default();
        let path = percent_decode_str(path.strip_prefix('/').unwrap_or_default())
            .decode_utf8()
            .map_err(|_| "has an escape that is not UTF-8: encode it with %XX".to_owned())?;
        if path.is_empty() || path == ":memory:" {
            return Err("names no file, and a database in memory cannot be shared with Django: \
                        write sqlite:///relative/path or sqlite:////absolute/path"
                .to_owned());
        }
        let url = Url::parse("sqlite://").map_err(|error| error.to_string())?;
        Ok(Self { kind: DatabaseKind::Sqlite, url, path: PathBuf::from(&*path) })
    }

    /// The kind of database.
    #[must_use]
    pub fn kind(&self) -> DatabaseKind {
        self.kind
    }

    /// The file of an SQLite database.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether to try to connect without TLS first. This is so on the loopback interface, to which
    /// no other machine can listen, unless the URL asks for TLS. TLS is slow there: sqlx sends it
    /// in pieces of 16 KiB without `TCP_NODELAY`, so each larger write waits about 40 ms.
    pub(crate) fn prefers_plain(&self) -> bool {
        let is_loopback = matches!(
            self.url.host_str().unwrap_or_default(),
            "" | "localhost" | "127.0.0.1" | "[::1]"
        );
        is_loopback && !self.url.query_pairs().any(|(name, _)| name.starts_with("ssl"))
    }

    /// The files for TLS.
    pub(crate) fn tls_files(&self) -> TlsFiles {
        let file = |names: [&str; 2]| {
            let mut parameters = self.url.query_pairs();
            parameters
                .find(|(name, _)| names.contains(&&**name))
                .map(|(_, path)| path.as_ref().into())
        };
        TlsFiles {
            ca: file(["sslrootcert", "ssl-ca"]),
            certificate: file(["sslcert", "ssl-cert"]),
            key: file(["sslkey", "ssl-key"]),
        }
    }

    /// The server's address without the brackets, if it is an IPv6 address. sqlx would look up the
    /// brackets as a part of a host name.
    pub(crate) fn ipv6_host(&self) -> Option<&str> {
        self.url.host_str()?.strip_prefix('[')?.strip_suffix(']')
    }

    /// The URL of the server including the password, for the database driver only.
    pub(crate) fn expose(&self) -> &str {
        self.url.as_str()
    }
}

/// The parameters of the URL with the names that sqlx uses.
fn parameters(url: &Url, kind: DatabaseKind) -> Result<Vec<(String, String)>, String> {
    let mut parameters = Vec::new();
    for (name, value) in url.query_pairs() {
        let lower = name.to_ascii_lowercase().replace('_', "-");
        let known = match (kind, lower.as_str()) {
            (DatabaseKind::Postgres, "sslmode" | "ssl-mode") => "sslmode",
            (DatabaseKind::Postgres, "sslrootcert" | "ssl-root-cert" | "ssl-ca") => "sslrootcert",
            (_, "sslcert" | "ssl-cert") => "ssl-cert",
            (_, "sslkey" | "ssl-key") => "ssl-key",
            (DatabaseKind::Postgres, "options") => "options",
            (DatabaseKind::Postgres, "host") => "host",
            (DatabaseKind::Postgres, "application-name") => continue,
            (DatabaseKind::Mysql, "sslmode" | "ssl-mode") => "ssl-mode",
            (DatabaseKind::Mysql, "sslca" | "ssl-ca") => "ssl-ca",
            (DatabaseKind::Mysql, "socket" | "unix-socket") => "socket",
            (_, other) if DJANGO_ONLY.contains(&other.replace('-', "_").as_str()) => continue,
            _ => {
                return Err(format!(
                    "has a parameter {name:?} that Celeriac does not know: remove it"
                ));
            }
        };
        parameters.push((known.to_owned(), value.into_owned()));
    }
    Ok(parameters)
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == DatabaseKind::Sqlite {
            return write!(formatter, "sqlite:///{}", self.path.display());
        }
        let mut shown = self.url.clone();
        if shown.password().is_some() {
            // Setting a password fails only for a URL without a host, and this one has a host.
            let _ = shown.set_password(Some("***"));
        }
        shown.set_query(None);
        formatter.write_str(shown.as_str())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_has_no_brackets() {
        let url = |text| DatabaseUrl::parse(text).expect(text);
        assert_eq!(url("postgres://[::1]:5433/shop").ipv6_host(), Some("::1"));
        assert_eq!(url("mysql://u:p@[fe80::1]/shop").ipv6_host(), Some("fe80::1"));
        assert_eq!(url("postgres://host/shop").ipv6_host(), None);
        assert!(url("postgres://[::1]/shop").prefers_plain());
    }

    #[test]
    fn urls_are_read_as_dj_database_url_reads_them() {
        for (url, kind, shown) in [
            ("postgres://u:p@h/n", DatabaseKind::Postgres, "postgres://u:***@h/n"),
            ("postgresql://h:1/n", DatabaseKind::Postgres, "postgres://h:1/n"),
            ("mysql://u:p%40@h/n?ssl_mode=REQUIRED", DatabaseKind::Mysql, "mysql://u:***@h/n"),
            ("postgres://%2Frun%2Fpg/n", DatabaseKind::Postgres, "postgres://%2Frun%2Fpg/n"),
            ("sqlite:///db.sqlite3", DatabaseKind::Sqlite, "sqlite:///db.sqlite3"),
            ("sqlite:////var/db.sqlite3", DatabaseKind::Sqlite, "sqlite:////var/db.sqlite3"),
        ] {
            let database = DatabaseUrl::parse(url).expect(url);
            assert_eq!((database.kind(), database.to_string().as_str()), (kind, shown), "{url}");
            assert_eq!(format!("{database:?}"), shown, "{url}");
        }
    }

    #[test]
    fn parameters_take_the_drivers_spelling() {
        let query = |url| DatabaseUrl::parse(url).expect(url).url.query().map(str::to_owned);
        assert_eq!(query("mysql://h/n?ssl_ca=/ca.pem"), Some("ssl-ca=%2Fca.pem".to_owned()));
        assert_eq!(query("postgres://h/n?conn_max_age=60"), None);
        assert_eq!(
            query("postgres://h/n?sslmode=require&CONN_MAX_AGE=0"),
            Some("sslmode=require".to_owned())
        );
    }

    #[test]
    fn errors_name_the_fix_and_not_the_password() {
        for (url, fix) in [
            ("db.sqlite3", "write for example postgres://"),
            ("oracle://u:secret@h/n", "oracle:// is not a database"),
            ("postgres://u:secret@h", "names no database"),
            ("postgres://u:secret@h:port/n", "write for example postgres://"),
            ("postgres://u:secret@h/n?sslmod=require", "remove it"),
            ("postgres://u:secret@h/n?sslcert=a", "only one of sslcert and sslkey"),
            ("postgres://u:1/secret@h/n", "`/`, `?` and `#` of a password as %2F, %3F and %23"),
            ("mysql://u:1#secret@h/n", "`/`, `?` and `#` of a password as %2F, %3F and %23"),
            ("sqlite://", "sqlite:///relative/path"),
            ("sqlite://:memory:", "sqlite:///relative/path"),
        ] {
            let error = DatabaseUrl::parse(url).expect_err(url);
            assert!(error.contains(fix), "{url}: {error}");
            assert!(!error.contains("secret"), "{url}: {error}");
        }
    }
}
