//! What systemd is told, over real sockets of its kind.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use ext_registry_tests::postgres::{Shutdown, must_succeed};
use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Nats, Postgres, wait_until};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(30);
const WATCHDOG: &str = "1000000";

/// Where a service manager would listen.
struct Manager {
    socket: UnixDatagram,
    name: OsString,
    _directory: Directory,
}

impl Manager {
    fn start() -> Self {
        let directory = Directory::short("notify-", None);
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("our own directory");
        Self::of(socket, path.into_os_string(), directory)
    }

    /// In the abstract namespace, without a file.
    fn abstract_one() -> Self {
        let directory = Directory::short("notify-", None);
        let name = directory.path().display().to_string();
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let socket = UnixDatagram::bind_addr(&address).expect("nobody else has this name");
        Self::of(socket, format!("@{name}").into(), directory)
    }

    fn of(socket: UnixDatagram, name: OsString, directory: Directory) -> Self {
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a socket");
        Self {
            socket,
            name,
            _directory: directory,
        }
    }

    fn variables(&self) -> [(&'static str, &OsStr); 2] {
        [("NOTIFY_SOCKET", &self.name), ("WATCHDOG_USEC", OsStr::new(WATCHDOG))]
    }

    /// The next message, if one comes soon.
    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).expect("UTF-8")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads until a message has this line; gives it and those before it.
    #[track_caller]
    fn until(&self, line: &str) -> Vec<String> {
        let (start, mut all) = (Instant::now(), Vec::new());
        loop {
            assert!(start.elapsed() < SOON, "no {line}: {all:?}");
            let Some(message) = self.next() else { continue };
            let found = message.lines().any(|other| other.starts_with(line));
            all.push(message);
            if found {
                return all;
            }
        }
    }

    /// How long no message has this line.
    fn silence(&self, line: &str, most: Duration) -> Duration {
        let start = Instant::now();
        while start.elapsed() < most {
            if self.next().is_some_and(|message| message.contains(line)) {
                break;
            }
        }
        start.elapsed()
    }
}

#[test]
fn ready_comes_after_readiness_and_the_end_is_told() {
    const DATABASE: &str = "app";
    let nats = Nats::start();
    let mut cluster = Postgres::start(&[]);
    cluster.make_database(DATABASE);
    must_succeed(&cluster.psql(DATABASE, "select 1"));
    let manager = Manager::start();
    cluster.stop(Shutdown::Fast);
    let flags = ["--source", "database"];
    let mut bridge = Bridge::launch_with(&nats, &cluster, DATABASE, &flags, &manager.variables());
    // It lives and says why it is not ready, but not READY.
    let before = manager.until("STATUS=not ready: the source does not decide");
    let pings = manager.until("WATCHDOG=1");
    assert!(
        !before.concat().contains("READY=1") && !pings.concat().contains("READY=1"),
        "{before:?} {pings:?}"
    );
    assert_eq!(bridge.readiness(), 503);
    bridge.hang_up();
    wait_until("the settings were read again", SOON, || {
        bridge.log().contains("read again")
    });
    let quiet = manager.until("WATCHDOG=1").concat();
    assert!(!quiet.contains("RELOADING") && !quiet.contains("READY=1"), "{quiet}");

    cluster.start_again();
    let ready = manager.until("READY=1");
    assert_eq!(bridge.readiness(), 200);
    assert!(
        ready
            .last()
            .expect("at least one")
            .contains("STATUS=ready, source database"),
        "{ready:?}"
    );

    bridge.hang_up();
    let reloading = manager.until("RELOADING=1");
    let reloading = reloading.last().expect("at least one");
    let at = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(at.is_some_and(|at| at.parse::<u64>().is_ok()), "{reloading}");
    manager.until("READY=1");
    manager.until("WATCHDOG=1");

    assert_eq!(bridge.terminate().code(), Some(0));
    let end = manager.until("STOPPING=1").concat();
    assert!(!end.contains("READY=1"), "{end}");
}

#[test]
fn a_loop_that_hangs_is_not_vouched_for() {
    let nats = Nats::start();
    let manager = Manager::abstract_one();
    let bridge = Bridge::launch_on_fixtures(&nats, &["--loops", "2"], &manager.variables());
    manager.until("READY=1");
    for _ in 0..4 {
        let silence = manager.silence("WATCHDOG=1", SOON);
        assert!(silence < Duration::from_secs(10), "{silence:?}");
    }

    let stopped = Stopped::new(thread_of(bridge.pid(), "loop-1"));
    // The other loop and the endpoints go on; what is told of them does too.
    wait_until("it is noticed", SOON, || bridge.log().contains("does not turn"));
    while manager.next().is_some() {}
    let silence = manager.silence("WATCHDOG=1", Duration::from_secs(2));
    assert!(
        silence >= Duration::from_secs(2),
        "pinged after {silence:?} with a loop that hangs"
    );
    assert_eq!(bridge.readiness(), 200, "only the watchdog sees it");

    drop(stopped);
    manager.until("WATCHDOG=1");
}

/// A thread that stands still; it goes on when this is dropped, also by a failing test: a process cannot end before that.
struct Stopped(Pid);

impl Stopped {
    fn new(thread: Pid) -> Self {
        ptrace::seize(thread, ptrace::Options::empty()).expect("our own child");
        ptrace::interrupt(thread).expect("it is traced");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        Self(thread)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        ptrace::detach(self.0, None).expect("it is traced");
    }
}

fn thread_of(pid: u32, name: &str) -> Pid {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process of this machine");
    let thread = threads
        .filter_map(Result::ok)
        .find(|entry| std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name));
    let thread = thread.unwrap_or_else(|| panic!("no thread {name}"));
    Pid::from_raw(thread.file_name().to_string_lossy().parse().expect("a number"))
}

#[test]
fn a_manager_that_is_not_there_stops_nothing() {
    let nats = Nats::start();
    let variables = [("NOTIFY_SOCKET", OsStr::new("/nowhere/notify"))];
    let bridge = Bridge::launch_on_fixtures(&nats, &[], &variables).ready();
    assert!(
        bridge.log().contains("the service manager cannot be told"),
        "{}",
        bridge.log()
    );
}
