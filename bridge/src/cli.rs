//! The command line.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{check, fixtures, man, request};
use crate::config::{Options, Settings, unknown_variables};
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
    /// Print the manual page (roff), as for `ext-bridge man | man -l -`
    Man,
}

/// Runs a command.
pub fn run(cli: Cli) -> Result<ExitCode, Exit> {
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "ext-bridge", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Man = cli.command {
        let page = man::page(Cli::command()).map_err(|e| Exit::new(Kind::Internal, e.to_string()))?;
        return print(&page);
    }
    let serving = matches!(cli.command, Command::Serve);
    let flags = cli.options.clone();
    let settings = Settings::resolve(cli.options)?;
    let levels = settings.logging.start(serving)?;
    if serving {
        warn_of_unknown_variables();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Exit::new(Kind::Internal, format!("cannot start a runtime: {e}")))?;
    runtime.block_on(async {
        match cli.command {
            Command::Serve => serve::run(settings, flags, levels).await.map(|()| ExitCode::SUCCESS),
            Command::Invoke(args) => Box::pin(request::invoke(settings, args)).await,
            Command::Route(args) => Box::pin(request::route(settings, args)).await,
            Command::Check => check::run(settings).await,
            Command::Fixtures(command) => fixtures::run(settings, command).await,
            Command::Completions { .. } | Command::Man => Ok(ExitCode::SUCCESS),
        }
    })
}

/// Writes to stdout; a reader that has gone is no error.
fn print(bytes: &[u8]) -> Result<ExitCode, Exit> {
    use std::io::Write;
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Exit::new(Kind::Internal, format!("cannot write: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn warn_of_unknown_variables() {
    for (variable, near) in unknown_variables(&Cli::command()) {
        let advice = near.map_or_else(
            || "no flag has this name".to_owned(),
            |near| format!("did you mean {near}?"),
        );
        tracing::warn!("the variable {variable} is not known and has no effect; {advice}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
