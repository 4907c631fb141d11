//! The sources of settings. The TOML file and the variables of other programs become the default
//! values of the command line, so that flags and Celeriac's own variables take precedence.

use std::collections::BTreeMap;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde::Deserialize;
use toml::Spanned;

use super::error::ConfigError;
use super::settings::Settings;
use crate::diagnosis::cannot_be_read;

/// The settings that can also come from the variables of other programs, and these variables.
const SHARED_VARIABLES: [(&str, &str); 3] = [
    ("broker", "CELERY_BROKER_URL"),
    ("database", "DATABASE_URL"),
    ("result_expires", "CELERY_RESULT_EXPIRES"),
];

/// Each setting that can be read from a separate file, and the setting that names the file. Each
/// source may give only one of the two, and a source with a higher precedence overrides both.
const PAIRS: [(&str, &str); 2] = [("broker", "broker_file"), ("database", "database_file")];

/// The settings of a TOML file, by the ids of their arguments. Empty texts are omitted.
#[derive(Clone, Debug, Default)]
pub struct FileSettings(BTreeMap<String, String>);

impl FileSettings {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not TOML or has an unknown setting.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let setting = || format!("the file {}", path.display());
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::new(setting(), cannot_be_read(&error)))?;
        Self::parse(&text).map_err(|problem| ConfigError::new(setting(), problem))
    }

    /// Parses a TOML text. An error names the line but does not quote it.
    fn parse(text: &str) -> Result<Self, String> {
        let line_of = |place: usize| text[..place].lines().count().max(1);
        // The `Display` of the error quotes the line, which may contain a password.
        let members: BTreeMap<Spanned<String>, TomlValue> =
            toml::from_str(text).map_err(|error| {
                let line = error.span().map_or(0, |span| line_of(span.start));
                format!("line {line}: {}", error.message())
            })?;
        let known = Settings::augment_args(Command::new(""));
        let mut settings = BTreeMap::new();
        for (name, value) in members {
            let argument =
                known.get_arguments().find(|argument| argument.get_long() == Some(name.as_ref()));
            let Some(argument) = argument else {
                let line = line_of(name.span().end);
                return Err(format!("line {line}: there is no setting `{}`", name.as_ref()));
            };
            let text = value.into_text();
            if !text.is_empty() {
                settings.insert(argument.get_id().to_string(), text);
            }
        }
        Ok(Self(settings))
    }
}

/// A number or a boolean can be written as such or as a text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text, a whole number, true or false")]
enum TomlValue {
    Number(i64),
    Flag(bool),
    Text(String),
}

impl TomlValue {
    fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// Sets the default values of a command's settings from the file, or from the variables of other
/// programs if the file does not have the setting. An empty variable of Celeriac is treated as not
/// set.
#[must_use]
pub fn with_defaults(
    command: Command,
    file: &FileSettings,
    variable: impl Fn(&str) -> Option<String>,
) -> Command {
    let mut defaults = file.0.clone();
    for (setting, name) in SHARED_VARIABLES {
        let is_given = defaults.contains_key(setting)
            || PAIRS.iter().any(|(one, other)| *one == setting && defaults.contains_key(*other));
        if let Some(text) = variable(name).filter(|text| !text.is_empty() && !is_given) {
            defaults.insert(setting.to_owned(), text);
        }
    }
    let settings = Settings::augment_args(Command::new(""));
    command.mut_args(|argument| {
        if !settings.get_arguments().any(|setting| setting.get_id() == argument.get_id()) {
            return argument;
        }
        let own = argument.get_env().and_then(|name| variable(name.to_str()?));
        let argument = if own.is_some_and(|text| text.is_empty()) {
            argument.env(clap::builder::Resettable::Reset)
        } else {
            argument
        };
        match defaults.get(argument.get_id().as_str()) {
            Some(text) => argument.default_value(text.clone()).hide_default_value(true),
            None => argument,
        }
    })
}

/// Settings from all sources. Of a secret and the setting that names its file, the one from the
/// source with the higher precedence is kept.
#[derive(Clone, Default)]
pub struct LayeredSettings(Box<Settings>);

impl LayeredSettings {
    /// The settings.
    #[must_use]
    pub fn into_settings(self) -> Settings {
        *self.0
    }
}

impl Args for LayeredSettings {
    fn augment_args(command: Command) -> Command {
        Settings::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Settings::augment_args_for_update(command)
    }
}

impl FromArgMatches for LayeredSettings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Settings::from_arg_matches(matches)?;
        for (secret, file) in PAIRS {
            let [of_secret, of_file] = [secret, file].map(|name| rank(matches.value_source(name)));
            let overridden = if of_secret < of_file { secret } else { file };
            match overridden {
                _ if of_secret == of_file => {}
                "broker" => settings.broker = None,
                "broker_file" => settings.broker_file = None,
                "database" => settings.database = None,
                _ => settings.database_file = None,
            }
        }
        Ok(Self(Box::new(settings)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The precedence of a source.
fn rank(source: Option<ValueSource>) -> u8 {
    match source {
        Some(ValueSource::CommandLine) => 3,
        Some(ValueSource::EnvVariable) => 2,
        Some(_) => 1,
        None => 0,
    }
}

/// The settings that a TOML text and variables result in.
#[cfg(test)]
pub(super) fn settings_of(toml: &str, variable: impl Fn(&str) -> Option<String>) -> Settings {
    let file = FileSettings::parse(toml).unwrap_or_else(|problem| panic!("{toml}: {problem}"));
    let command = LayeredSettings::augment_args(Command::new("celeriac"));
    let command = with_defaults(command, &file, variable);
    // Ignores the environment of the tests.
    let command = command.mut_args(|argument| argument.env(clap::builder::Resettable::Reset));
    let matches = command.get_matches_from(["celeriac"]);
    LayeredSettings::from_arg_matches(&matches).expect("they are good").into_settings()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_help_names_the_defaults() {
        let command = LayeredSettings::augment_args(Command::new("celeriac"));
        let command = command.mut_args(|argument| {
            let argument = argument.env(clap::builder::Resettable::Reset);
            let help = argument.get_long_help().expect("a setting has help").to_string();
            let default = help.rsplit("Default: ").next().expect("its default");
            match default.trim_matches('`') {
                "none" => argument,
                phrase if phrase.contains(' ') => argument,
                default => argument.default_value(default.to_owned()),
            }
        });
        let matches = command.get_matches_from(["celeriac"]);
        let named = LayeredSettings::from_arg_matches(&matches).expect("they are good");
        let named = named.into_settings();
        assert_eq!(named.lanes.as_deref(), Some("1"), "the defaults were found");
        let named = format!("{:?}", named.check().expect("the named defaults are good"));
        let real = format!("{:?}", Settings::default().check().expect("the defaults are good"));
        assert_eq!(named, real);
    }

    #[test]
    fn a_source_overrides_the_next_unless_it_is_empty() {
        let shared = |name: &str| match name {
            "CELERY_BROKER_URL" => Some("amqp://shared//".to_owned()),
            "DATABASE_URL" => Some("postgres://shared/n".to_owned()),
            "CELERY_RESULT_EXPIRES" => Some("0".to_owned()),
            _ => None,
        };
        let expires = |settings: Settings| {
            let expiry = settings.check().expect("all are good").cleanup.expiry;
            expiry.rules()[expiry.of_groups()].age
        };
        assert_eq!(expires(settings_of("", shared)), None);
        assert_eq!(expires(settings_of("", |_| None)), Some(Duration::from_hours(24)));
        let written = settings_of("result-expires = 60", shared);
        assert_eq!(expires(written), Some(Duration::from_mins(1)));

        let path = std::env::temp_dir().join(format!("celeriac-layers-{}", std::process::id()));
        std::fs::write(&path, "lanes = '3'\nresults-queue = 'r'\nexchange = ''\nmax-rows = 7")
            .expect("the folder is writable");
        let file = FileSettings::read(&path);
        std::fs::remove_file(&path).expect("just written");
        // Variables that exist in every test run are used as the variables of settings.
        let command = LayeredSettings::augment_args(Command::new("celeriac"))
            .mut_arg("exchange", |argument| argument.env("CARGO_PKG_NAME"))
            .mut_arg("max_rows", |argument| argument.env("EMPTY"));
        let variable =
            |name: &str| if name == "EMPTY" { Some(String::new()) } else { shared(name) };
        let command = with_defaults(command, &file.expect("it is good"), variable);
        let flags = ["celeriac", "--lanes", "2", "--database", "mysql://h/n"];
        let matches = command.get_matches_from(flags);
        let settings = LayeredSettings::from_arg_matches(&matches).expect("they are good");
        let config = settings.into_settings().check().expect("all are good");
        assert_eq!((config.lanes, config.results_queue.as_str()), (2, "r"));
        assert_eq!((config.max_rows, config.exchange.as_str()), (7, "celeriac"));
        assert_eq!(config.brokers[0].host, "shared");
        assert_eq!(config.database.to_string(), "mysql://h/n");
    }

    #[test]
    fn an_error_in_the_file_names_the_line_and_not_its_content() {
        let path = std::env::temp_dir().join(format!("celeriac-{}.toml", std::process::id()));
        let error = |toml: &str| {
            std::fs::write(&path, toml).expect("the folder is writable");
            let error = FileSettings::read(&path).expect_err(toml).to_string();
            std::fs::remove_file(&path).expect("just written");
            error
        };
        let message = error("lanes = 1\nbroker = 'amqp://u:secret@h' x\n");
        assert!(message.contains("line 2") && !message.contains("secret"), "{message}");
        let message = error("lane = 1\n");
        assert!(
            message.contains("line 1") && message.contains("there is no setting `lane`"),
            "{message}"
        );
        let message = FileSettings::read(&path).expect_err("no file").to_string();
        assert!(message.contains("cannot be read"), "{message}");
    }

    #[test]
    fn the_higher_source_of_a_secret_or_its_file_is_used_and_both_in_one_source_are_refused() {
        const FILE: &str = "CARGO_MANIFEST_DIR";
        let given = |toml: &str, flags: &[&str], variable: &str| {
            // A variable that exists in every test run is used as `CELERIAC_BROKER_FILE`.
            let command = LayeredSettings::augment_args(Command::new("celeriac"))
                .mut_args(|argument| argument.env(clap::builder::Resettable::Reset))
                .mut_arg("broker_file", |argument| argument.env(variable.to_owned()));
            let file = FileSettings::parse(toml).expect(toml);
            let shared =
                |name: &str| (name == "CELERY_BROKER_URL").then(|| "amqp://shared//".to_owned());
            let command = with_defaults(command, &file, shared);
            let matches = command.get_matches_from([&["celeriac"], flags].concat());
            let settings = LayeredSettings::from_arg_matches(&matches).expect("they are good");
            let Settings { broker, broker_file, .. } = settings.into_settings();
            (broker, broker_file)
        };
        let text = |text: &str| Some(text.to_owned());
        let url = "broker = 'amqp://url//'";
        let flag = ["--broker", "amqp://flag//"];
        assert_eq!(given("", &[], "NOWHERE"), (text("amqp://shared//"), None));
        assert_eq!(given(url, &[], "NOWHERE"), (text("amqp://url//"), None));
        assert_eq!(given("broker-file = 'f'", &[], "NOWHERE"), (None, text("f")));
        assert_eq!(given("broker-file = ''", &[], "NOWHERE"), (text("amqp://shared//"), None));
        assert_eq!(given(url, &[], FILE), (None, text(env!("CARGO_MANIFEST_DIR"))));
        assert_eq!(given(url, &flag, FILE), (text("amqp://flag//"), None));
        assert_eq!(given(url, &["--broker-file", "f"], FILE), (None, text("f")));
        let both = "broker = 'amqp://url//'\nbroker-file = 'f'";
        assert_eq!(given(both, &flag, "NOWHERE"), (text("amqp://flag//"), None));
        let error = settings_of(both, |_| None).check().expect_err("both").to_string();
        assert!(error.starts_with("broker: is given, and so is broker-file: drop"), "{error}");
    }
}
