//! How to reach NATS, from the settings. What cannot be is refused here, before anything is connected to.

use std::net::IpAddr;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::options::Options;
use super::{unescaped, wrong};
use crate::exit::{Exit, Kind};
use crate::transport::NatsSettings;

/// Who one is, as the address of a server may say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Login {
    User(String, String),
    Token(String),
}

/// The settings of NATS. User and password, or a token, may be part of the address; flags of their own go before.
pub(super) fn nats(all: &Options) -> Result<NatsSettings, Exit> {
    let url = all.nats_url.as_deref().unwrap_or("nats://127.0.0.1:4222");
    let (mut servers, mut login) = (Vec::new(), None);
    for server in url.split(',').map(str::trim).filter(|server| !server.is_empty()) {
        let (server, named) = without_login(server);
        if let Some(named) = named
            && *login.get_or_insert_with(|| named.clone()) != named
        {
            let message =
                format!("nats-url: {server} has another login than the servers before it; one is for all of them");
            return Err(Exit::new(Kind::Config, message));
        }
        servers.push(server);
    }
    if servers.is_empty() {
        return Err(wrong("nats-url", url, "an address such as nats://127.0.0.1:4222"));
    }
    let together = |one: (&str, bool), other: (&str, bool)| match (one.1, other.1) {
        (true, false) => Err(Exit::new(Kind::Config, format!("{} needs {} too", one.0, other.0))),
        (false, true) => Err(Exit::new(Kind::Config, format!("{} needs {} too", other.0, one.0))),
        _ => Ok(()),
    };
    together(
        ("nats-user", all.nats_user.is_some()),
        ("nats-password", all.nats_password.is_some()),
    )?;
    together(
        ("nats-tls-cert", all.nats_tls_cert.is_some()),
        ("nats-tls-key", all.nats_tls_key.is_some()),
    )?;
    let files = [
        ("nats-creds", &all.nats_creds),
        ("nats-tls-ca", &all.nats_tls_ca),
        ("nats-tls-cert", &all.nats_tls_cert),
        ("nats-tls-key", &all.nats_tls_key),
    ];
    let mut held = Xxh3::new();
    for (key, path) in files {
        let content = match path {
            Some(path) => read(key, path)?,
            None => Vec::new(),
        };
        held.update(&content.len().to_le_bytes());
        held.update(&content);
    }
    if let Some(seed) = &all.nats_nkey_seed
        && !is_seed(seed)
    {
        let message =
            "nats-nkey-seed: this is not the seed of a user's nkey, which has 58 letters and digits and begins with SU";
        return Err(Exit::new(Kind::Config, message));
    }
    let inbox_prefix = all.nats_inbox_prefix.clone().unwrap_or_else(|| "_INBOX".to_owned());
    if !is_inbox(&inbox_prefix) {
        return Err(wrong(
            "nats-inbox-prefix",
            &inbox_prefix,
            "a subject such as _INBOX.bridge, without wildcards",
        ));
    }
    let named_elsewhere =
        all.nats_user.is_some() || all.nats_token.is_some() || all.nats_creds.is_some() || all.nats_nkey_seed.is_some();
    let (mut user, mut password) = (all.nats_user.clone(), all.nats_password.clone());
    let mut token = all.nats_token.clone();
    match login {
        Some(Login::User(name, secret)) if !named_elsewhere => (user, password) = (Some(name), Some(secret)),
        Some(Login::Token(secret)) if !named_elsewhere => token = Some(secret),
        _ => {}
    }
    Ok(NatsSettings {
        servers,
        creds: all.nats_creds.clone(),
        user,
        password,
        token,
        nkey_seed: all.nats_nkey_seed.clone(),
        tls_ca: all.nats_tls_ca.clone(),
        tls_cert: all.nats_tls_cert.clone(),
        tls_key: all.nats_tls_key.clone(),
        tls_first: all.nats_tls_first.unwrap_or(false),
        inbox_prefix,
        files: held.digest(),
    })
}

/// An address and the login in it.
fn without_login(server: &str) -> (String, Option<Login>) {
    let (scheme, rest) = server
        .split_once("://")
        .map_or(("", server), |(scheme, rest)| (&server[..scheme.len() + 3], rest));
    let Some((login, host)) = rest.rsplit_once('@') else {
        return (server.to_owned(), None);
    };
    let login = match login.split_once(':') {
        Some((user, password)) => Login::User(unescaped(user), unescaped(password)),
        None => Login::Token(unescaped(login)),
    };
    (format!("{scheme}{host}"), Some(login))
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, Exit> {
    std::fs::read(path)
        .map_err(|error| Exit::new(Kind::Config, format!("{key}: cannot read {}: {error}", path.display())))
}

/// Whether inboxes can be below it.
fn is_inbox(prefix: &str) -> bool {
    let plain = |token: &str| {
        let bad = |c: char| matches!(c, '*' | '>') || c.is_whitespace() || c.is_control();
        !token.is_empty() && !token.contains(bad)
    };
    prefix.len() <= 128 && prefix.split('.').all(plain)
}

/// Whether it has the form of a user's seed.
fn is_seed(text: &str) -> bool {
    text.len() == 58 && text.starts_with("SU") && text.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'2'..=b'7'))
}

/// Whether what is sent to a server can be read on the way to another machine.
pub(super) fn is_exposed(server: &str) -> bool {
    let (scheme, rest) = server.split_once("://").unwrap_or(("nats", server));
    if matches!(scheme, "tls" | "wss") {
        return false;
    }
    let host = match rest.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => rest.split([':', '/']).next(),
    };
    let host = host.unwrap_or_default();
    host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn with(url: &str) -> Options {
        Options {
            nats_url: Some(url.to_owned()),
            ..Options::default()
        }
    }

    #[test]
    fn an_address_may_hold_a_login() {
        let settings = nats(&with("nats://me:p%40ss%2@a:4222, b:4223")).unwrap();
        assert_eq!(settings.servers, ["nats://a:4222", "b:4223"]);
        assert_eq!(settings.user.as_deref(), Some("me"));
        assert_eq!(settings.password.as_deref(), Some("p@ss%2"));
        let settings = nats(&with("tls://secret@[::1]:4222")).unwrap();
        assert_eq!(
            (settings.shown().as_str(), settings.token.as_deref()),
            ("tls://[::1]:4222", Some("secret"))
        );
        let mut flags = with("nats://me:x@a");
        (flags.nats_user, flags.nats_password) = (Some("you".to_owned()), Some("y".to_owned()));
        assert_eq!(nats(&flags).unwrap().user.as_deref(), Some("you"));
    }

    #[test]
    fn what_cannot_be_is_refused_and_named() {
        let refused = |all: &Options| {
            let exit = nats(all).unwrap_err();
            assert_eq!(exit.kind, Kind::Config);
            exit.message
        };
        assert!(refused(&with(" , ")).contains("nats-url"));
        let two = refused(&with("nats://a:1@h,nats://b:2@i"));
        assert!(two.contains("nats://i") && !two.contains("b:2"), "{two}");
        let user = Options {
            nats_user: Some("me".to_owned()),
            ..Options::default()
        };
        assert_eq!(refused(&user), "nats-user needs nats-password too");
        let file = Options {
            nats_creds: Some(PathBuf::from("/nowhere/x.creds")),
            ..Options::default()
        };
        assert!(refused(&file).contains("/nowhere/x.creds"));
        let seed = Options {
            nats_nkey_seed: Some("SUsecret".to_owned()),
            ..Options::default()
        };
        assert!(!refused(&seed).contains("secret"), "a secret is shown");
        for prefix in ["", ".", "a.", "a..b", "a b", "_INBOX.>", "*"] {
            let inbox = Options {
                nats_inbox_prefix: Some(prefix.to_owned()),
                ..Options::default()
            };
            assert!(refused(&inbox).contains("nats-inbox-prefix"), "{prefix}");
        }
    }

    #[test]
    fn loopback_is_not_on_the_way_to_anywhere() {
        for server in [
            "localhost",
            "nats://127.0.0.1:4222",
            "nats://[::1]:4222",
            "tls://nats.example:4222",
        ] {
            assert!(!is_exposed(server), "{server}");
        }
        for server in [
            "nats.example",
            "localhost.example:4222",
            "nats://127.example",
            "nats://[2001:db8::1]:4222",
        ] {
            assert!(is_exposed(server), "{server}");
        }
    }
}
