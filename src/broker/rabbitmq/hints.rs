//! Publishes hints to the exchange that waiting processes bind their queues to.

use std::sync::Arc;

use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ExchangeKind};

use super::connection::connect;
use super::error::{Error, is_protocol_error};
use super::topology::short;
use crate::broker::{Announce, BrokerError, BrokerErrorClass};
use crate::config::Config;

/// The exchange, a durable topic exchange. Projects differ in their routing keys.
pub(super) const EXCHANGE: &str = "celeriac.stored";

/// A connection that publishes hints and nothing else. A broker that is short of memory or disk
/// space stops reading from connections that publish, and acknowledgements must not be blocked.
pub struct RabbitMqHints {
    config: Arc<Config>,
    opened: Option<(Connection, Channel)>,
}

impl RabbitMqHints {
    /// Hints for the processes that wait for results of this project.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Self {
        Self { config, opened: None }
    }
}

impl Announce for RabbitMqHints {
    async fn connect(&mut self) -> Result<(), BrokerError> {
        self.opened = None;
        let connection = connect(&self.config.brokers, "celeriac hints").await?;
        let channel = open_channel(&connection).await?;
        self.opened = Some((connection, channel));
        Ok(())
    }

    async fn announce(&mut self, body: &[u8]) -> Result<(), BrokerError> {
        let unavailable = |message| BrokerError::new(BrokerErrorClass::Unavailable, message);
        let Some((connection, channel)) = &self.opened else {
            return Err(unavailable("there is no connection"));
        };
        if connection.status().blocked() {
            return Err(unavailable("the broker is short of memory or disk space"));
        }
        // Readers bind with `<queue>.final.#`.
        let routing_key = short(&format!("{}.final", self.config.results_queue));
        Ok(publish(channel, routing_key, body).await?)
    }
}

/// Whether the exchange exists, for `celeriac check`.
///
/// # Errors
///
/// When this user may not publish to it.
pub(super) async fn is_usable(connection: &Connection) -> Result<bool, Error> {
    let channel = connection.create_channel().await.map_err(failed)?;
    match declare_exchange(&channel, true).await {
        Ok(()) => check_permission(&channel).await.map(|()| true),
        Err(error) if is_protocol_error(&error, &[404]) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Opens a channel, declares the exchange, and makes sure that this user may publish to it.
async fn open_channel(connection: &Connection) -> Result<Channel, Error> {
    let declare = async |passive| {
        let channel = connection.create_channel().await.map_err(failed)?;
        let declared = declare_exchange(&channel, passive).await;
        Ok::<_, Error>(declared.map(|()| channel))
    };
    let channel = match declare(false).await? {
        // 403: this user may not declare it. 406: it exists with other properties. It is used as it
        // is.
        Err(error) if is_protocol_error(&error, &[403, 406]) => {
            declare(true).await?.map_err(failed)?
        }
        declared => declared.map_err(failed)?,
    };
    check_permission(&channel).await?;
    Ok(channel)
}

/// Publishes a message that nobody receives. If this user may not publish to the exchange, the
/// broker closes the channel, and the next request on it fails.
async fn check_permission(channel: &Channel) -> Result<(), Error> {
    publish(channel, ShortString::default(), b"").await?;
    declare_exchange(channel, true).await.map_err(failed)
}

async fn declare_exchange(channel: &Channel, passive: bool) -> Result<(), lapin::Error> {
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    let kind = ExchangeKind::Topic;
    channel.exchange_declare(short(EXCHANGE), kind, options, FieldTable::default()).await
}

async fn publish(channel: &Channel, key: ShortString, body: &[u8]) -> Result<(), Error> {
    let properties = BasicProperties::default().with_content_type("application/json".into());
    let options = BasicPublishOptions::default();
    channel
        .basic_publish(short(EXCHANGE), key, options, body, properties)
        .await
        .map(drop)
        .map_err(failed)
}

fn failed(source: lapin::Error) -> Error {
    Error::Exchange { exchange: EXCHANGE.to_owned(), source }
}
