//! Publishes messages with publisher confirms: dead letters, and messages that are replayed.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Connection, PublisherConfirm};

use super::connection::connect;
use super::error::Error;
use super::message::to_properties;
use super::topology::short;
use crate::broker::Sent;
use crate::config::BrokerUrl;
use crate::message::{Headers, Properties};

/// How long the broker may take to confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// The same for one message that another daemon may send after 15 s.
const CONFIRM_ONE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection with a channel in confirm mode. It must not be used again after an error.
pub(super) struct Publisher {
    connection: Connection,
    channel: Channel,
}

/// A message to be published.
pub(super) struct Outgoing<'message> {
    pub(super) body: &'message [u8],
    pub(super) properties: Properties,
    pub(super) headers: Headers,
}

impl Publisher {
    /// Connects, with a name that the broker shows in its list of connections.
    pub(super) async fn open(brokers: &[BrokerUrl], name: &str) -> Result<Self, Error> {
        let connection = connect(brokers, name).await?;
        let channel = connection.create_channel().await.map_err(Error::Lost)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(Error::Lost)?;
        Ok(Self { connection, channel })
    }

    /// The connection, for declarations.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Publishes messages to a queue and waits until the broker has confirmed all of them.
    ///
    /// # Errors
    ///
    /// When some of them may not be in the queue. The caller may then publish all of them again.
    pub(super) async fn publish<'message>(
        &self,
        queue: &str,
        messages: impl Iterator<Item = Outgoing<'message>>,
    ) -> Result<(), Error> {
        let publishing = self.publish_all(queue, messages);
        tokio::time::timeout(CONFIRM_TIMEOUT, publishing)
            .await
            .map_err(|_| Error::Unconfirmed(CONFIRM_TIMEOUT))?
    }

    /// Publishes a message to an exchange and waits until the broker has confirmed or returned it.
    ///
    /// # Errors
    ///
    /// When the broker has not confirmed it. It may have been published.
    pub(super) async fn publish_one(
        &self,
        exchange: &str,
        routing_key: &str,
        message: Outgoing<'_>,
    ) -> Result<Sent, Error> {
        let what = || {
            let exchange = if exchange.is_empty() { "(default)" } else { exchange };
            format!("with the routing key {routing_key} of the exchange {exchange}")
        };
        let failed = |source| Error::Publish { queue: what(), source };
        let publishing = async {
            let published = self.begin(short(exchange), short(routing_key), &message);
            published.await.map_err(failed)?.await.map_err(failed)
        };
        match tokio::time::timeout(CONFIRM_ONE_TIMEOUT, publishing).await {
            Ok(confirmation) => match confirmation? {
                Confirmation::Ack(None) => Ok(Sent::Confirmed),
                Confirmation::Ack(Some(_)) => {
                    Ok(Sent::Returned(format!("there is no queue {}", what())))
                }
                _ => Err(Error::Refused { queue: what() }),
            },
            Err(_) => Err(Error::Unconfirmed(CONFIRM_ONE_TIMEOUT)),
        }
    }

    /// Publishes a message, and returns what waits for its confirmation.
    async fn begin(
        &self,
        exchange: ShortString,
        routing_key: ShortString,
        message: &Outgoing<'_>,
    ) -> Result<PublisherConfirm, lapin::Error> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = to_properties(&message.properties, &message.headers);
        self.channel.basic_publish(exchange, routing_key, options, message.body, properties).await
    }

    async fn publish_all<'message>(
        &self,
        queue: &str,
        messages: impl Iterator<Item = Outgoing<'message>>,
    ) -> Result<(), Error> {
        let failed = |source| Error::Publish { queue: queue.to_owned(), source };
        let routing_key = short(queue);
        let mut confirmations = Vec::new();
        for message in messages {
            let published = self.begin(ShortString::default(), routing_key.clone(), &message);
            confirmations.push(published.await.map_err(failed)?);
        }
        for confirmation in confirmations {
            match confirmation.await.map_err(failed)? {
                Confirmation::Ack(None) => {}
                _ => return Err(Error::Refused { queue: queue.to_owned() }),
            }
        }
        Ok(())
    }
}
