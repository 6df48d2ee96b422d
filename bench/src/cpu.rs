//! CPU time of processes, from `/proc`: far steadier than rates where others use the machine too.

use std::collections::HashMap;
use std::fs;
use std::sync::LazyLock;
use std::time::Instant;

/// What all processes had used at one moment.
pub struct Snapshot {
    at: Instant,
    processes: HashMap<u32, Process>,
    /// Time that the processors spent on processes, or that the host took from them, in s.
    busy: f64,
}

struct Process {
    parent: u32,
    /// User and system time of the process and of the children it has waited for, in s.
    used: f64,
}

/// Time on the processors between two snapshots.
pub struct Usage {
    /// Seconds between them.
    pub elapsed: f64,
    /// Seconds of CPU time of each process asked for, its descendants included.
    pub used: Vec<(&'static str, f64)>,
    /// Cores that were busy with what does not descend from this process.
    pub foreign: f64,
}

impl Usage {
    /// The same per call, in us.
    pub fn cpu_us(&self, calls: f64) -> Vec<(&'static str, f64)> {
        self.used
            .iter()
            .map(|(name, used)| (*name, used * 1e6 / calls))
            .collect()
    }
}

impl Snapshot {
    pub fn take() -> Self {
        let processes = fs::read_dir("/proc")
            .expect("a Linux system")
            .filter_map(|entry| {
                let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
                // Gone meanwhile: then its parent has its time.
                Some((pid, process(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
            })
            .collect();
        Self {
            at: Instant::now(),
            processes,
            busy: busy(&fs::read_to_string("/proc/stat").expect("a Linux system")),
        }
    }

    /// What was used from `self` to `later`. The processes must have run all the time; their descendants may come and go.
    pub fn until(&self, later: &Self, of: &[(&'static str, u32)]) -> Usage {
        let elapsed = (later.at - self.at).as_secs_f64();
        let between = |pid| later.tree(pid) - self.tree(pid);
        Usage {
            elapsed,
            used: of.iter().map(|(name, pid)| (*name, between(*pid))).collect(),
            foreign: ((later.busy - self.busy - between(std::process::id())) / elapsed).max(0.0),
        }
    }

    fn tree(&self, root: u32) -> f64 {
        let within = |mut pid: u32| {
            while pid != root {
                match self.processes.get(&pid) {
                    Some(process) => pid = process.parent,
                    None => return false,
                }
            }
            true
        };
        self.processes
            .iter()
            .filter(|(pid, _)| within(**pid))
            .map(|(_, process)| process.used)
            .sum()
    }
}

/// Time that one process has spent on the processors so far, in s; exact, where `/proc/PID/stat` counts ticks.
pub fn on_processor(pid: u32) -> Option<f64> {
    let schedstat = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    Some(schedstat.split(' ').next()?.parse::<u64>().ok()? as f64 / 1e9)
}

/// Memory of one process that it shares with nobody, in MiB.
pub fn own_memory(pid: u32) -> Option<f64> {
    status(pid, "RssAnon:")
}

/// The most memory that one process has had so far, in MiB.
pub fn peak_memory(pid: u32) -> Option<f64> {
    status(pid, "VmHWM:")
}

/// A line of `/proc/PID/status`, from kB to MiB.
fn status(pid: u32, name: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}

fn ticks_per_second() -> f64 {
    static TICKS: LazyLock<f64> = LazyLock::new(|| {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        ticks.ok().flatten().expect("a system setting") as f64
    });
    *TICKS
}

/// `/proc/PID/stat` of proc(5). The name, in parentheses, may hold anything.
fn process(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    // Fields 14-17: utime, stime, cutime, cstime.
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok());
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        used: ticks.sum::<u64>() as f64 / ticks_per_second(),
    })
}

/// User, nice, system and steal of `/proc/stat`. Interrupts, of which the loopback network makes many, belong to nobody.
fn busy(stat: &str) -> f64 {
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    let sum: u64 = [0, 1, 2, 7]
        .into_iter()
        .filter_map(|place: usize| ticks.get(place))
        .sum();
    sum as f64 / ticks_per_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 100 50 30 20 20 0 1 0 5 6 7";
        let read = process(line).expect("a process");
        assert_eq!(read.parent, 7);
        assert!((read.used * ticks_per_second() - 200.0).abs() < 1e-6);
        assert!(process("42 (a").is_none());
    }

    #[test]
    fn own_work_is_not_foreign() {
        let before = Snapshot::take();
        let mut sum = 0_u64;
        while before.at.elapsed().as_millis() < 300 {
            sum = std::hint::black_box(sum.wrapping_mul(3) + 1);
        }
        let usage = before.until(&Snapshot::take(), &[("self", std::process::id())]);
        assert!(usage.used[0].1 > 0.05, "{:?}", usage.used);
    }
}
