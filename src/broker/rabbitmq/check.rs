//! The checks of RabbitMQ for `celeriac check`: which brokers answer, which queues and exchanges
//! exist, and how they differ from what Celeriac declares. It creates nothing and consumes no
//! message.
//!
//! AMQP cannot query a user's permissions. A missing permission to create something shows only when
//! `celeriac run` needs it.

use std::time::{Duration, Instant};

use lapin::options::ExchangeDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Connection, ExchangeKind};

use super::connection::connect;
use super::error::{Error, is_protocol_error};
use super::hints;
use super::topology::{
    dead_arguments, declare_and_compare, declare_passive, difference, events_arguments,
    results_arguments, short,
};
use crate::config::{BrokerUrl, Config};
use crate::diagnosis::Causes;
use crate::diagnosis::finding::{Finding, Severity, Subject};

/// How long all queries to the broker may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

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

/// Connects to every broker and checks the queues of the first one that answers. Returns that
/// broker.
pub async fn check<'config>(
    config: &'config Config,
    report: &mut dyn FnMut(Finding),
) -> Option<&'config BrokerUrl> {
    let (broker, connection) = connect_to_all(config, report).await?;
    let queries = async {
        for queue in queues(config) {
            check_queue(&connection, broker, &queue, report).await?;
            if let Some((exchange, kind)) = &queue.exchange {
                check_exchange(&connection, exchange, kind, report).await?;
            }
        }
        if config.hints {
            check_hints(&connection, report).await?;
        }
        Ok(())
    };
    let failure = match tokio::time::timeout(CHECK_TIMEOUT, queries).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some(Error::Silent { broker: broker.to_string() }),
    };
    if let Some(error) = failure {
        report(Finding::error(Subject::Broker, Causes(&error).to_string()));
        return None;
    }
    let _ = connection.close(200, ShortString::default()).await;
    Some(broker)
}

/// Connects to every broker and returns the first one that answers.
async fn connect_to_all<'config>(
    config: &'config Config,
    report: &mut dyn FnMut(Finding),
) -> Option<(&'config BrokerUrl, Connection)> {
    let mut usable = None;
    let mut failures = Vec::new();
    for broker in &config.brokers {
        let began = Instant::now();
        match connect(std::slice::from_ref(broker), "celeriac check").await {
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
    let level = if usable.is_some() { Severity::Warning } else { Severity::Error };
    for failure in failures {
        report(Finding { level, ..Finding::ok(Subject::Broker, failure) });
    }
    usable
}

fn queues(config: &Config) -> impl Iterator<Item = Queue<'_>> {
    let results = Queue {
        name: &config.results_queue,
        role: "results",
        arguments: results_arguments(&config.dead_queue),
        exchange: Some((&config.exchange, ExchangeKind::Direct)),
        is_consumed: true,
    };
    let dead = Queue {
        name: &config.dead_queue,
        role: "dead letters",
        arguments: dead_arguments(),
        exchange: None,
        is_consumed: false,
    };
    let events = config.events.as_ref().map(|events| Queue {
        name: &events.queue,
        role: "events",
        arguments: events_arguments(events),
        exchange: Some((&config.event_exchange, ExchangeKind::Topic)),
        is_consumed: true,
    });
    [results, dead].into_iter().chain(events)
}

async fn check_queue(
    connection: &Connection,
    broker: &BrokerUrl,
    queue: &Queue<'_>,
    report: &mut dyn FnMut(Finding),
) -> Result<(), Error> {
    let &Queue { name, role, is_consumed, .. } = queue;
    let failed = |source| Error::Queue { queue: name.to_owned(), source };
    let channel = connection.create_channel().await.map_err(failed)?;
    let found = match declare_passive(&channel, name).await {
        Ok(found) => found,
        Err(error) if is_protocol_error(&error, &[404]) => {
            let text =
                format!("the queue {name} ({role}) is not there yet: `celeriac run` creates it");
            report(Finding::ok(Subject::Broker, text));
            return Ok(());
        }
        // Such as an exclusive queue of another connection.
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
    let differences = declare_and_compare(connection, name, &queue.arguments).await?;
    if !differences.is_empty() {
        let text = format!(
            "the queue {name} has other arguments than Celeriac declares, and is used as it is: {}",
            differences.join("; ")
        );
        report(Finding::warning(Subject::Broker, text).fix(format!(
            "if this is not intended: stop the programs that use it, run `rabbitmqctl delete_queue \
             -p {} {name} --if-empty`, and start `celeriac run`, which declares it again",
            broker.vhost
        )));
    }
    Ok(())
}

async fn check_hints(
    connection: &Connection,
    report: &mut dyn FnMut(Finding),
) -> Result<(), Error> {
    let exchange = hints::EXCHANGE;
    match hints::is_usable(connection).await {
        Ok(exists) => report(exchange_finding(exchange, exists)),
        Err(Error::Exchange { source, .. }) if is_protocol_error(&source, &[403]) => {
            let text = format!(
                "this user may not publish to the exchange {exchange}, so processes that wait for \
                 results poll the database"
            );
            report(Finding::warning(Subject::Broker, text).fix(format!(
                "give the user the permission to write to `^{}$` (docs/security.md), or set \
                 hints to false",
                exchange.replace('.', "\\.")
            )));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Whether an exchange exists. `celeriac run` creates one that does not.
fn exchange_finding(name: &str, exists: bool) -> Finding {
    let text = if exists {
        format!("the exchange {name} is there")
    } else {
        format!("the exchange {name} is not there yet: `celeriac run` creates it")
    };
    Finding::ok(Subject::Broker, text)
}

async fn check_exchange(
    connection: &Connection,
    name: &str,
    kind: &ExchangeKind,
    report: &mut dyn FnMut(Finding),
) -> Result<(), Error> {
    let failed = |source| Error::Exchange { exchange: name.to_owned(), source };
    let declare = async |options: ExchangeDeclareOptions| {
        let channel = connection.create_channel().await.map_err(failed)?;
        let options = ExchangeDeclareOptions { durable: true, ..options };
        let declared =
            channel.exchange_declare(short(name), kind.clone(), options, FieldTable::default());
        Ok::<_, Error>(declared.await)
    };
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    match declare(passive).await? {
        Ok(()) => report(exchange_finding(name, true)),
        Err(error) if is_protocol_error(&error, &[404]) => {
            report(exchange_finding(name, false));
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    }
    if let Err(error) = declare(ExchangeDeclareOptions::default()).await? {
        let difference = difference(&error).ok_or_else(|| failed(error))?;
        if !difference.is_empty() {
            let text = format!(
                "the exchange {name} has other properties than Celeriac declares, and is used as \
                 it is: {difference}"
            );
            report(Finding::warning(Subject::Broker, text));
        }
    }
    Ok(())
}
