//! RabbitMQ, through lapin. No other module uses lapin.

mod acknowledge;
mod careful;
pub mod check;
mod connection;
pub mod dead_queue;
mod error;
mod hints;
mod message;
mod publish;
pub mod queue_depth;
pub mod round_trip;
mod session;
pub mod tap;
mod tasks;
mod topology;
mod unreadable;

pub use self::hints::RabbitMqHints;
pub use self::session::RabbitMq;
pub use self::tasks::RabbitMqTasks;
