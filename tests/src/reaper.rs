//! The last resort: a small shell process that outlives this one by a moment.
//!
//! Values of static lifetime are never dropped, and a killed test process drops nothing. So each process and directory
//! is also made known to the reaper, which reads its standard input. When that closes, because this process is gone in
//! whatever way, it ends the processes and removes the directories that are still on its list.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// Processes are remembered with their start time, so that a recycled process id is left alone.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
declare -A started signals dirs
start_time() { local stat; stat=$(<"/proc/$1/stat") || return; stat=${stat##*) }; set -- $stat; echo "${20}"; } 2>/dev/null
alive() { [[ -n ${started[$1]} && $(start_time "$1") == "${started[$1]}" ]]; }
while read -r verb first second; do
    case $verb in
    process) started[$first]=$(start_time "$first") signals[$first]=$second ;;
    directory) dirs[$first]=1 ;;
    done) unset "started[$first]" "signals[$first]" "dirs[$first]" ;;
    esac
done
for pid in "${!started[@]}"; do alive "$pid" && kill -s "${signals[$pid]}" "$pid"; done
for _ in {1..50}; do
    left=
    for pid in "${!started[@]}"; do alive "$pid" && left=1; done
    [[ -z $left ]] && break
    sleep 0.1
done
for pid in "${!started[@]}"; do alive "$pid" && kill -s KILL "$pid"; done
for dir in "${!dirs[@]}"; do rm -rf "$dir"; done
"#;

fn tell(line: &str) {
    // Never waited for: it ends after this process.
    static REAPER: OnceLock<Mutex<Child>> = OnceLock::new();
    let reaper = REAPER.get_or_init(|| {
        let child = Command::new("bash")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash can be started");
        Mutex::new(child)
    });
    let mut reaper = reaper.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let stdin = reaper.stdin.as_mut().expect("its standard input is a pipe");
    writeln!(stdin, "{line}").expect("the reaper reads");
}

/// Has `pid` ended by `signal` (`TERM`, `QUIT`, ...), and after 5 s by `KILL`, when this process is gone.
pub fn watch_process(pid: u32, signal: &str) {
    tell(&format!("process {pid} {signal}"));
}

/// Has `path` removed, with all in it, when this process is gone.
pub fn watch_directory(path: &Path) {
    tell(&format!("directory {}", path.display()));
}

/// The process has ended.
pub fn forget_process(pid: u32) {
    tell(&format!("done {pid}"));
}

/// The directory is gone.
pub fn forget_directory(path: &Path) {
    tell(&format!("done {}", path.display()));
}
