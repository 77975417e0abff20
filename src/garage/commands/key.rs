//! `garage key …`

use std::time::Duration;

use garage_admin::Date;
use garage_admin::keys::{CreateKey, DeleteKey, GetKeyInfo, ImportKey, KeyInfo, KeyPerm, KeyUpdate, ListKeys, UpdateKey};
use garage_types::Clock;
use garage_types::clock::SystemClock;
use jiff::tz::TimeZone;

use super::{confirmed, damaged_rows};
use crate::args::key::KeyCommand;
use crate::connection::Daemon;
use crate::error::CliError;
use crate::output::Output;
use crate::show::bucket::damaged as show_damaged;
use crate::show::key as show;

pub(super) async fn run(daemon: &Daemon, command: KeyCommand, output: Output) -> Result<(), CliError> {
    let create_bucket = Some(KeyPerm { create_bucket: true });
    let info = match command {
        KeyCommand::List => {
            let keys = daemon.call(ListKeys).await?;
            let damaged = damaged_rows(daemon, output).await?;
            return output.reply(&keys, |keys| show::list(keys, &TimeZone::system()) + &show_damaged(&damaged));
        }
        KeyCommand::Delete { key, yes } => return delete(daemon, &key, yes, output).await,
        KeyCommand::DeleteExpired { yes } => return delete_expired(daemon, yes, output).await,
        KeyCommand::Info { key, show_secret } => {
            daemon.call(GetKeyInfo { search: Some(key), show_secret_key: show_secret, id: None }).await?
        }
        KeyCommand::Create(args) => {
            let name = args.name().map(str::to_owned);
            daemon.call(CreateKey(KeyUpdate { name, expiration: args.expires_in.map(from_now), ..KeyUpdate::default() })).await?
        }
        KeyCommand::Rename { key, new_name } => {
            update(daemon, &key, KeyUpdate { name: Some(new_name), ..KeyUpdate::default() }).await?
        }
        KeyCommand::Set { key, expires_in, never_expires } => {
            let change = KeyUpdate { expiration: expires_in.map(from_now), never_expires, ..KeyUpdate::default() };
            update(daemon, &key, change).await?
        }
        KeyCommand::Allow(args) => update(daemon, &args.key, KeyUpdate { allow: create_bucket, ..KeyUpdate::default() }).await?,
        KeyCommand::Deny(args) => update(daemon, &args.key, KeyUpdate { deny: create_bucket, ..KeyUpdate::default() }).await?,
        KeyCommand::Import { key_id, secret, name, yes } => {
            let what = "import keys only to move them from another Garage cluster; otherwise make one with garage key create";
            confirmed(yes, what)?;
            daemon.call(ImportKey { access_key_id: key_id, secret_access_key: secret, name: Some(name) }).await?
        }
    };
    output.reply(&info, |info| show::info(info, &TimeZone::system()))
}

fn from_now(duration: Duration) -> Date {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Date(SystemClock.now().plus_millis(millis))
}

async fn find(daemon: &Daemon, pattern: &str) -> Result<KeyInfo, CliError> {
    daemon.call(GetKeyInfo { search: Some(pattern.to_owned()), ..GetKeyInfo::default() }).await
}

async fn update(daemon: &Daemon, pattern: &str, body: KeyUpdate) -> Result<KeyInfo, CliError> {
    let id = find(daemon, pattern).await?.access_key_id.to_string();
    daemon.call(UpdateKey { id, body }).await
}

async fn delete(daemon: &Daemon, pattern: &str, yes: bool, output: Output) -> Result<(), CliError> {
    let key = find(daemon, pattern).await?;
    confirmed(yes, &format!("this deletes access key {} ({}) for good", key.access_key_id, key.name))?;
    daemon.call(DeleteKey { id: key.access_key_id.to_string() }).await?;
    output.reply(&(), |()| "Access key deleted.\n".to_owned())
}

async fn delete_expired(daemon: &Daemon, yes: bool, output: Output) -> Result<(), CliError> {
    let keys = daemon.call(ListKeys).await?;
    let expired: Vec<String> = keys.into_iter().filter(|key| key.expired).map(|key| key.id.to_string()).collect();
    confirmed(yes, &format!("this deletes {} expired access keys for good", expired.len()))?;
    for id in &expired {
        daemon.call(DeleteKey { id: id.clone() }).await?;
    }
    output.reply(&expired, |expired| format!("{} access keys deleted.\n", expired.len()))
}
