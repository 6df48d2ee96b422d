//! The command line.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::commands::{check, fixtures, request};
use crate::config::{Options, Settings};
use crate::exit::{Exit, Kind};
use crate::serve;

const AFTER: &str = "\
Every flag has an environment variable EXT_BRIDGE_<FLAG> and a key in the settings file; a flag counts before the
environment, that before the file, that before the default. Lengths of time are written 250ms, 30s, 5m, 24h.

With source auto the bridge keeps an image of the registry, in memory and in a file: while Postgres does not answer, the
image decides, and what calls came to meanwhile is handed over when it answers again.

Exit codes:
  0   success
  1   a call was refused or failed, or a check failed
  2   wrong flags or settings
  3   NATS cannot be reached or refuses
  4   Postgres cannot be reached or refuses, or lacks the extension
  5   an address cannot be listened on
  6   fixtures that cannot be used
  70  anything else

Examples:
  ext-bridge serve --source database --db-host db.example --nats-url nats://nats.example:4222
  ext-bridge invoke normalize_text --payload '{\"payload\": \"  Hello \"}' --tenant t1
  ext-bridge route full --tenant t1 --message '{\"payload\": \"Hello\"}'
  ext-bridge check";

/// Calls extensions over NATS as the registry in Postgres decides
#[derive(Debug, Parser)]
#[command(name = "ext-bridge", version, after_help = AFTER, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve,
    /// Call one extension and print its reply as JSON
    Invoke(request::InvokeArgs),
    /// Send a message through a policy's pipeline and print the reply as JSON
    Route(request::RouteArgs),
    /// Test NATS, Postgres, the extension and its rights, the image kept of it, and who listens; one line each
    Check,
    /// Work with a folder of fixtures
    #[command(subcommand)]
    Fixtures(fixtures::FixturesCommand),
    /// Print a completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs a command.
pub fn run(cli: Cli) -> Result<ExitCode, Exit> {
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "ext-bridge", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let serving = matches!(cli.command, Command::Serve);
    let logging = logging_options(&cli.options)?;
    let settings = Settings::resolve(cli.options)?;
    start_logging(&logging, serving)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Exit::new(Kind::Internal, format!("cannot start a runtime: {e}")))?;
    runtime.block_on(async {
        match cli.command {
            Command::Serve => serve::run(settings).await.map(|()| ExitCode::SUCCESS),
            Command::Invoke(args) => request::invoke(settings, args).await,
            Command::Route(args) => request::route(settings, args).await,
            Command::Check => check::run(settings).await,
            Command::Fixtures(command) => fixtures::run(settings, command).await,
            Command::Completions { .. } => Ok(ExitCode::SUCCESS),
        }
    })
}

struct Logging {
    level: Option<String>,
    json: bool,
}

fn logging_options(options: &Options) -> Result<Logging, Exit> {
    let file = options
        .config
        .as_deref()
        .map(Options::read)
        .transpose()?
        .unwrap_or_default();
    let level = options.log_level.clone().or(file.log_level);
    let json = match options.log_format.clone().or(file.log_format).as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => {
            return Err(Exit::new(
                Kind::Config,
                format!("log-format: \"{other}\" is not text or json"),
            ));
        }
    };
    Ok(Logging { level, json })
}

fn start_logging(logging: &Logging, serving: bool) -> Result<(), Exit> {
    let default = if serving { "info,async_nats=error" } else { "error" };
    let level = logging.level.as_deref().unwrap_or(default);
    let filter =
        EnvFilter::try_new(level).map_err(|e| Exit::new(Kind::Config, format!("log-level: \"{level}\": {e}")))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if logging.json {
        log.json().init();
    } else {
        log.init();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
