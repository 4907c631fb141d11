//! The process metrics that Prometheus client libraries usually provide, with the usual names. They
//! are read for each request. Metrics that the system does not provide are left out.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::time::{ClockId, clock_gettime};

const CPU_SECONDS: &str = "process_cpu_seconds";
const RESIDENT_MEMORY_BYTES: &str = "process_resident_memory_bytes";
const OPEN_FDS: &str = "process_open_fds";
const MAX_FDS: &str = "process_max_fds";
const START_TIME_SECONDS: &str = "process_start_time_seconds";

/// The process.
#[derive(Debug)]
pub(super) struct Process {
    started_at: f64,
}

impl Process {
    /// Creates the collector. The start time of the process is now.
    pub(super) fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started_at: since.as_secs_f64() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let cpu = ConstCounter::new(cpu_seconds());
        let metric_type = cpu.metric_type();
        let help = "CPU time of the process";
        cpu.encode(encoder.encode_descriptor(CPU_SECONDS, help, None, metric_type)?)?;

        let mut gauge = |name: &str, help: &str, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge(START_TIME_SECONDS, "Start time of the process since 1970", Some(self.started_at))?;
        gauge(RESIDENT_MEMORY_BYTES, "Memory of the process", resident_bytes())?;
        gauge(OPEN_FDS, "Open files and sockets of the process", open_fds())?;
        gauge(MAX_FDS, "Limit of open files and sockets", max_fds())
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds since the start are far below 2⁵³")]
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = field(&status, "VmRSS:")?.parse::<f64>().ok()?;
    Some(kibibytes * 1024.0)
}

fn open_fds() -> Option<f64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the folder itself.
    u32::try_from(count.saturating_sub(1)).ok().map(f64::from)
}

fn max_fds() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    field(&limits, "Max open files")?.parse().ok()
}

/// The first word after a name at the beginning of a line.
fn field<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}
