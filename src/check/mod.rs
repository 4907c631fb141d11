//! Trying everything that `celeriac run` needs, without changing anything: both sides, the queues,
//! the tables and the rights, and a message from its queue to a write that is undone.

mod broker;
mod round_trip;

use tokio::net::TcpListener;

use crate::config::Config;
use crate::finding::{Finding, Subject};
use crate::store::Database;

/// Looks at one thing after the other and reports each.
pub async fn run(config: &Config, database: &Database, report: &mut dyn FnMut(Finding)) {
    settings(config, report).await;
    let broker = broker::check(config, report).await;
    let is_storable = database.inspect(report).await;
    round_trip::check(config, broker, database, is_storable, report).await;
}

/// What the settings say for themselves, and can be tried here.
async fn settings(config: &Config, report: &mut dyn FnMut(Finding)) {
    for broker in config.brokers.iter().filter(|broker| !broker.ignored.is_empty()) {
        let parameters = broker.ignored.join(", ");
        let text = format!("parameters of the URL {broker} mean nothing here: {parameters}");
        report(Finding::warning(Subject::Settings, text).fix("leave them out"));
    }
    let Some(address) = config.listen else { return };
    report(match TcpListener::bind(address).await {
        Ok(_) => Finding::ok(Subject::Settings, format!("{address} is free to listen on")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let text = format!("{address} is taken, by a daemon that runs or by somebody else");
            Finding::warning(Subject::Settings, text)
                .fix(format!("`curl http://{address}/ready` shows whose it is"))
        }
        Err(error) => {
            Finding::error(Subject::Settings, format!("cannot listen on {address}: {error}")).fix(
                "choose an address of this machine, and a port above 1023 without root's rights",
            )
        }
    });
}
