//! Settings: what users write, and the checked values that the other modules use.
//!
//! A setting has one name: `--max-rows` on the command line, `CELERIAC_MAX_ROWS` in the
//! environment, `max-rows` in the TOML file. The command line wins over the environment, and that
//! over the file. `CELERY_BROKER_URL`, `DATABASE_URL` and `CELERY_RESULT_EXPIRES` come after the
//! file: they are there for other programs as well.

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
