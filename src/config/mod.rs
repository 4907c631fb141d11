//! Settings: reads what users write, and turns it into the checked values that other modules use.
//!
//! A setting has the same name everywhere: `--max-rows` on the command line, `CELERIAC_MAX_ROWS` in
//! the environment and `max-rows` in the TOML file. The command line takes precedence over the
//! environment, and the environment over the file. `CELERY_BROKER_URL`, `DATABASE_URL` and
//! `CELERY_RESULT_EXPIRES` have the lowest precedence, because they also configure other programs.

mod broker_url;
mod check;
mod cleanup;
mod database_url;
mod error;
mod layers;
mod parse;
mod secret;
mod security;
mod settings;

pub use self::broker_url::BrokerUrl;
pub use self::check::{Config, Events, LogFormat};
pub use self::cleanup::CleanupConfig;
pub use self::database_url::{DatabaseKind, DatabaseUrl};
pub use self::error::ConfigError;
pub use self::layers::{FileSettings, LayeredSettings, with_defaults};
pub use self::settings::{ConfigFile, Settings};
