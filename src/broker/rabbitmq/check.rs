//! What `celeriac check` can know of RabbitMQ: who answers, what exists and how it differs from what
//! Celeriac declares. Nothing is made, and no message is taken.
//!
//! AMQP has no question for a user's rights. What a right would be missing for shows when
//! `celeriac run` needs it.

use std::time::{Duration, Instant};

use lapin::options::ExchangeDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Connection, ExchangeKind};

use super::connection::connect;
use super::error::{Error, is_protocol_error};
use super::topology::{
    dead_arguments, declare_and_compare, declare_passive, difference, events_arguments,
    results_arguments, short,
};
use crate::config::{BrokerUrl, Config};
use crate::diagnosis::Causes;
use crate::diagnosis::finding::{Finding, Severity, Subject};

/// How long the broker may take to answer all questions.
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

/// Connects to every broker and looks at the queues of the first one that answers, which is
/// returned.
pub async fn check<'config>(
    config: &'config Config,
    report: &mut dyn FnMut(Finding),
) -> Option<&'config BrokerUrl> {
    let (broker, connection) = connect_to_all(config, report).await?;
    let questions = async {
        for queue in queues(config) {
            check_queue(&connection, broker, &queue, report).await?;
            if let Some((exchange, kind)) = &queue.exchange {
                check_exchange(&connection, exchange, kind, report).await?;
            }
        }
        Ok(())
    };
    let failure = match tokio::time::timeout(CHECK_TIMEOUT, questions).await {
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

/// Connects to every broker; gives the first one that answers.
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
                format!("the queue {name} ({role}) is not there yet: `celeriac run` makes it");
            report(Finding::ok(Subject::Broker, text));
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
    let differences = declare_and_compare(connection, name, &queue.arguments).await?;
    if !differences.is_empty() {
        let text = format!(
            "the queue {name} has other arguments than Celeriac gives it, and is used as it is: {}",
            differences.join("; ")
        );
        report(Finding::warning(Subject::Broker, text).fix(format!(
            "if that is not on purpose: stop who uses it, `rabbitmqctl delete_queue -p {} {name} \
             --if-empty`, and start `celeriac run`, which makes it anew",
            broker.vhost
        )));
    }
    Ok(())
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
        Ok(()) => report(Finding::ok(Subject::Broker, format!("the exchange {name} is there"))),
        Err(error) if is_protocol_error(&error, &[404]) => {
            let text = format!("the exchange {name} is not there yet: `celeriac run` makes it");
            report(Finding::ok(Subject::Broker, text));
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    }
    if let Err(error) = declare(ExchangeDeclareOptions::default()).await? {
        let difference = difference(&error).ok_or_else(|| failed(error))?;
        if !difference.is_empty() {
            let text = format!(
                "the exchange {name} has other properties than Celeriac gives it, and is used as \
                 it is: {difference}"
            );
            report(Finding::warning(Subject::Broker, text));
        }
    }
    Ok(())
}
