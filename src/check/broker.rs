//! RabbitMQ: who answers, what is there, and what this user may do.
//!
//! Nothing is made, and no message is taken. A right is tried by asking for something that the broker
//! refuses in any case, after it has looked at the rights: a queue of a negative length, an exchange
//! whose alternate is a number, a consumer whose priority is a text, an unbinding of what was never
//! bound (`rabbit_channel.erl`, RabbitMQ 3.10).

use std::time::{Duration, Instant};

use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Connection, ExchangeKind};

use crate::config::{BrokerUrl, Config};
use crate::finding::{Finding, Level, Subject};
use crate::source::{self, SourceError, short};
use crate::telemetry::Causes;

/// How long the broker may take for all of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A routing key that nothing is bound with.
const NO_KEY: &str = "celeriac check";

/// A queue that `celeriac run` uses.
struct Queue<'config> {
    name: &'config str,
    role: &'static str,
    arguments: FieldTable,
    /// The exchange that it is bound to.
    exchange: Option<(&'config str, ExchangeKind)>,
    /// Whether it is consumed.
    is_consumed: bool,
}

/// Looks at every broker, and at the queues of the first one that answers, which is returned.
pub(super) async fn check<'config>(
    config: &'config Config,
    report: &mut dyn FnMut(Finding),
) -> Option<&'config BrokerUrl> {
    let mut usable = None;
    let mut failures = Vec::new();
    for broker in &config.brokers {
        let began = Instant::now();
        match source::connect(std::slice::from_ref(broker), "celeriac check").await {
            Ok(connection) => {
                let milliseconds = began.elapsed().as_millis();
                let text = format!("connected to {broker} in {milliseconds} ms");
                report(Finding::ok(Subject::Broker, text));
                if usable.is_none() {
                    usable = Some((broker, connection));
                } else {
                    let _ = connection.close(200, ShortString::default()).await;
                }
            }
            Err(error) => failures.push(Causes(&error).to_string()),
        }
    }
    let level = if usable.is_some() { Level::Warning } else { Level::Error };
    for failure in failures {
        report(Finding { level, ..Finding::ok(Subject::Broker, failure) });
    }
    let (broker, connection) = usable?;
    let look = Look { connection, broker };
    let looked = tokio::time::timeout(PATIENCE, look.at_all(config, report)).await;
    let failure = match looked {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some(SourceError::Silent { broker: broker.to_string() }),
    };
    if let Some(error) = failure {
        report(Finding::error(Subject::Broker, Causes(&error).to_string()));
        return None;
    }
    let _ = look.connection.close(200, ShortString::default()).await;
    Some(broker)
}

struct Look<'config> {
    connection: Connection,
    broker: &'config BrokerUrl,
}

impl Look<'_> {
    async fn at_all(
        &self,
        config: &Config,
        report: &mut dyn FnMut(Finding),
    ) -> Result<(), SourceError> {
        let results = Queue {
            name: &config.results_queue,
            role: "results",
            arguments: source::results_arguments(&config.dead_queue),
            exchange: Some((&config.exchange, ExchangeKind::Direct)),
            is_consumed: true,
        };
        let dead = Queue {
            name: &config.dead_queue,
            role: "dead letters",
            arguments: source::dead_arguments(),
            exchange: None,
            is_consumed: false,
        };
        let events = config.events.as_ref().map(|events| Queue {
            name: &events.queue,
            role: "events",
            arguments: source::events_arguments(events),
            exchange: Some((&config.event_exchange, ExchangeKind::Topic)),
            is_consumed: true,
        });
        for queue in [Some(results), Some(dead), events].into_iter().flatten() {
            self.at_queue(&queue, report).await?;
            if let Some((exchange, kind)) = &queue.exchange {
                self.at_exchange(exchange, kind, queue.name, report).await?;
            }
        }
        Ok(())
    }

    async fn at_queue(
        &self,
        queue: &Queue<'_>,
        report: &mut dyn FnMut(Finding),
    ) -> Result<(), SourceError> {
        let &Queue { name, role, is_consumed, .. } = queue;
        let failed = |source| SourceError::Queue { queue: name.to_owned(), source };
        let channel = self.connection.create_channel().await.map_err(failed)?;
        let found = match source::look_at(&channel, name).await {
            Ok(found) => found,
            Err(error) if source::is_protocol_error(&error, &[404]) => {
                let text = format!("the queue {name} ({role}) is not there yet");
                report(if self.may_make_queue(name).await? {
                    Finding::ok(Subject::Broker, format!("{text}: `celeriac run` makes it"))
                } else {
                    self.missing_right(
                        &format!("{text}, and this user may not make it"),
                        "configure",
                        name,
                    )
                });
                return Ok(());
            }
            // Somebody else's exclusive queue, among others.
            Err(error) => return Err(failed(error)),
        };
        let (messages, consumers) = (found.message_count(), found.consumer_count());
        let counts = if is_consumed {
            format!("{messages} messages wait, {consumers} consumers")
        } else {
            format!("{messages} messages")
        };
        report(Finding::ok(Subject::Broker, format!("the queue {name} ({role}): {counts}")));
        if !is_consumed && messages > 0 {
            let text = format!("{messages} messages could not be stored and are in {name}");
            report(Finding::warning(Subject::Broker, text).fix("`celeriac dead list` shows why"));
        }
        let differences =
            source::declare_and_compare(&self.connection, name, &queue.arguments).await?;
        if !differences.is_empty() {
            let text = format!(
                "the queue {name} has other arguments than Celeriac gives it, and is used as it \
                 is: {}",
                differences.join("; ")
            );
            report(Finding::warning(Subject::Broker, text).fix(format!(
                "if that is not on purpose: stop who uses it, `rabbitmqctl delete_queue -p {} {name} \
                 --if-empty`, and start `celeriac run`, which makes it anew",
                self.broker.vhost
            )));
        }
        if is_consumed && !self.may_consume(name).await? {
            let text = format!("this user may not consume the queue {name}");
            report(self.missing_right(&text, "read", name));
        }
        Ok(())
    }

    async fn at_exchange(
        &self,
        name: &str,
        kind: &ExchangeKind,
        queue: &str,
        report: &mut dyn FnMut(Finding),
    ) -> Result<(), SourceError> {
        let failed = |source| SourceError::Exchange { exchange: name.to_owned(), source };
        let declare = async |options: ExchangeDeclareOptions, arguments| {
            let channel = self.connection.create_channel().await.map_err(failed)?;
            let options = ExchangeDeclareOptions { durable: true, ..options };
            let declared = channel.exchange_declare(short(name), kind.clone(), options, arguments);
            Ok::<_, SourceError>(declared.await)
        };
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        match declare(passive, FieldTable::default()).await? {
            Ok(()) => {
                report(Finding::ok(Subject::Broker, format!("the exchange {name} is there")));
                let declared = declare(ExchangeDeclareOptions::default(), FieldTable::default());
                if let Err(error) = declared.await? {
                    let difference = source::difference(&error).ok_or_else(|| failed(error))?;
                    if !difference.is_empty() {
                        let text = format!(
                            "the exchange {name} has other properties than Celeriac gives it, and \
                             is used as it is: {difference}"
                        );
                        report(Finding::warning(Subject::Broker, text));
                    }
                }
            }
            Err(error) if source::is_protocol_error(&error, &[404]) => {
                let mut impossible = FieldTable::default();
                impossible.insert("alternate-exchange".into(), AMQPValue::LongInt(0));
                let text = format!("the exchange {name} is not there yet");
                let refused = declare(ExchangeDeclareOptions::default(), impossible).await?;
                report(if is_allowed(refused).map_err(failed)? {
                    Finding::ok(Subject::Broker, format!("{text}: `celeriac run` makes it"))
                } else {
                    let text = format!(
                        "{text}, and this user may not make it: it comes with the first worker \
                         that may"
                    );
                    Finding {
                        level: Level::Warning,
                        ..self.missing_right(&text, "configure", name)
                    }
                });
            }
            Err(error) => return Err(failed(error)),
        }
        let channel = self.connection.create_channel().await.map_err(failed)?;
        let unbound =
            channel.queue_unbind(short(queue), short(name), short(NO_KEY), FieldTable::default());
        if !is_allowed(unbound.await).map_err(failed)? {
            let text = format!(
                "this user may not bind {queue} to {name}: what is published to the exchange comes \
                 only where somebody else has bound it"
            );
            let fix = format!(
                "that needs the right to write to {queue} and to read from {name}: {}",
                self.how_to_permit()
            );
            report(Finding::warning(Subject::Broker, text).fix(fix));
        }
        Ok(())
    }

    async fn may_make_queue(&self, name: &str) -> Result<bool, SourceError> {
        let failed = |source| SourceError::Queue { queue: name.to_owned(), source };
        let channel = self.connection.create_channel().await.map_err(failed)?;
        let mut impossible = FieldTable::default();
        impossible.insert("x-max-length".into(), AMQPValue::LongInt(-1));
        let options = QueueDeclareOptions::durable();
        let refused = channel.queue_declare(short(name), options, impossible).await;
        is_allowed(refused).map_err(failed)
    }

    async fn may_consume(&self, name: &str) -> Result<bool, SourceError> {
        let failed = |source| SourceError::Queue { queue: name.to_owned(), source };
        let channel = self.connection.create_channel().await.map_err(failed)?;
        let mut impossible = FieldTable::default();
        impossible.insert("x-priority".into(), AMQPValue::LongString("none".into()));
        let options = BasicConsumeOptions::default();
        let refused =
            channel.basic_consume(short(name), ShortString::default(), options, impossible);
        is_allowed(refused.await).map_err(failed)
    }

    fn missing_right(&self, text: &str, right: &str, name: &str) -> Finding {
        let fix = format!("that needs the right to {right} {name}: {}", self.how_to_permit());
        Finding::error(Subject::Broker, text).fix(fix)
    }

    fn how_to_permit(&self) -> String {
        let BrokerUrl { user, vhost, .. } = self.broker;
        format!(
            "`rabbitmqctl list_user_permissions {user}` shows the patterns that there are, and \
             `rabbitmqctl set_permissions -p {vhost} {user} CONFIGURE WRITE READ` sets them"
        )
    }
}

/// Whether a question was refused for what it asks, and not for want of a right.
fn is_allowed<T>(answer: Result<T, lapin::Error>) -> Result<bool, lapin::Error> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if source::is_protocol_error(&error, &[403]) => Ok(false),
        Err(error) if source::is_protocol_error(&error, &[404, 406]) => Ok(true),
        Err(error) => Err(error),
    }
}
