//! Settings that contain a password: given directly, or in a separate file.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::ConfigError;
use crate::diagnosis::cannot_be_read;

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// Where Docker and systemd put secrets. They are visible only to one container or one service, so
/// their permissions do not matter.
const PRIVATE_FOLDER: &str = "/run/";

/// A setting, and the file that it can be read from.
pub(super) struct Secret {
    pub(super) setting: &'static str,
    pub(super) text: Option<String>,
    pub(super) file: Option<String>,
}

impl Secret {
    /// Reads and parses the setting or its default.
    ///
    /// An error never quotes the file, except for the scheme of a URL.
    pub(super) fn read<T>(
        self,
        default: &str,
        parse: impl Fn(&str) -> Result<T, String>,
        warnings: &mut Vec<String>,
    ) -> Result<T, ConfigError> {
        let Self { setting, text, file } = self;
        let Some(file) = file else {
            let text = text.as_deref().unwrap_or(default);
            return parse(text).map_err(|problem| ConfigError::new(setting, problem));
        };
        if text.is_some() {
            return Err(ConfigError::new(
                setting,
                format!(
                    "is given, and so is {setting}-file: drop {setting}, or drop {setting}-file \
                     if the file is out of date"
                ),
            ));
        }
        let failed = |problem: String| {
            ConfigError::new(format!("{setting}-file"), format!("the file {file} {problem}"))
        };
        let text = read_line(Path::new(&file)).map_err(failed)?;
        if is_open_to_all(Path::new(&file)) {
            warnings.push(format!(
                "{setting}-file: every user of this machine can read {file}: run `chmod 600 {file}`"
            ));
        }
        parse(&text).map_err(failed)
    }
}

/// The only line of a file, without surrounding white space.
fn read_line(path: &Path) -> Result<String, String> {
    let cannot = |error| cannot_be_read(&error);
    let mut text = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("is larger than {MAX_BYTES} bytes: write a URL into it, and no more"));
    }
    let text = String::from_utf8(text)
        .map_err(|_| "is not UTF-8: write a URL into it, and no more".to_owned())?;
    match text.trim() {
        "" => Err("is empty: write a URL into it".to_owned()),
        text if text.contains(['\n', '\r']) => {
            Err("has more than one line: write a URL into it, and no more".to_owned())
        }
        text => Ok(text.to_owned()),
    }
}

/// Whether every user of the machine can read the file.
fn is_open_to_all(path: &Path) -> bool {
    const OTHERS_READ: u32 = 0o004;
    !path.starts_with(PRIVATE_FOLDER)
        && path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & OTHERS_READ != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::config::layers::settings_of;
    use crate::config::{Config, DatabaseKind};

    /// A file that is deleted at the end of the test.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str, content: &[u8]) -> Self {
            use std::io::Write;
            let name = format!("celeriac-secret-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let mut options = File::options();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
            file.and_then(|mut file| file.write_all(content)).expect("the folder is writable");
            Self(path)
        }

        fn path(&self) -> &str {
            self.0.to_str().expect("the path is UTF-8")
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn check(toml: &str) -> Result<Config, String> {
        settings_of(toml, |_| None).check().map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_holds_one_url() {
        let broker = Temporary::new("broker", b"amqp://u:hunter2@one//;amqp://two//\n");
        let database = Temporary::new("database", b"  postgres://u:hunter2@h/n\r\n\n");
        let toml =
            format!("broker-file = '{}'\ndatabase-file = '{}'", broker.path(), database.path());
        let config = check(&toml).expect("the files are good");
        let hosts: Vec<_> = config.brokers.iter().map(|broker| broker.host.as_str()).collect();
        assert_eq!((hosts, config.brokers[0].password.as_str()), (vec!["one", "two"], "hunter2"));
        assert_eq!(config.database.kind(), DatabaseKind::Postgres);
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn a_file_that_everybody_can_read_causes_a_warning() {
        let file = Temporary::new("open", b"amqp://u:hunter2@h//");
        std::fs::set_permissions(&file.0, PermissionsExt::from_mode(0o644)).expect("it is ours");
        let config = check(&format!("broker-file = '{}'", file.path())).expect("it is good");
        let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
        assert!(warning.contains("chmod 600") && !warning.contains("hunter2"), "{warning}");
    }

    #[test]
    fn an_invalid_file_is_refused_with_the_fix_and_without_its_content() {
        let large = vec![b's'; 65_537];
        let cases: [(&str, &[u8], &str); 7] = [
            ("empty", b"\n", "is empty: write a URL into it"),
            ("lines", b"amqp://h//\nhunter2", "has more than one line: write a URL"),
            ("binary", b"hunter2\xff", "is not UTF-8: write a URL"),
            ("large", &large, "is larger than 65536 bytes: write a URL"),
            ("password", b"hunter2", "has no scheme: write for example amqp://"),
            ("port", b"amqp://u:hunter2/x@h//", "is not a URL"),
            ("query", b"amqp://u:1?hunter2@h//", "has an `@` after its host: write `/`, `?` and"),
        ];
        for (name, content, expected) in cases {
            let file = Temporary::new(name, content);
            let error = check(&format!("broker-file = '{}'", file.path())).expect_err(name);
            let expected = format!("broker-file: the file {} {expected}", file.path());
            assert!(error.starts_with(&expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = check("database-file = '/nowhere/at/all'").expect_err("it is not there");
        assert!(error.starts_with("database-file: the file /nowhere/at/all cannot be read"));
        assert!(error.contains("check the path"), "{error}");
    }
}
