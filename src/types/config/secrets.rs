//! Where secrets come from: flags, the environment, or the file; inline, or in a file of their own.

use std::path::PathBuf;

use super::{ConfigError, SecretFiles};
use crate::Secret;

/// A secret that is known, or the file that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    Inline(Secret),
    File(PathBuf),
}

/// The secrets a node may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretName {
    Rpc,
    AdminToken,
    MetricsToken,
}

/// Who speaks, from the strongest to the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Flag,
    Environment,
    File,
}

/// What one level says about one secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretInput {
    pub inline: Option<Secret>,
    pub file: Option<PathBuf>,
}

/// What flags or environment variables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub rpc_secret: SecretInput,
    pub admin_token: SecretInput,
    pub metrics_token: SecretInput,
    pub secret_files: Option<SecretFiles>,
}

impl SecretName {
    /// The inline and the file spelling at a level.
    fn spellings(self, level: Level) -> [&'static str; 2] {
        match (self, level) {
            (SecretName::Rpc, Level::Flag) => ["--rpc-secret", "--rpc-secret-file"],
            (SecretName::Rpc, Level::Environment) => ["GARAGE_RPC_SECRET", "GARAGE_RPC_SECRET_FILE"],
            (SecretName::Rpc, Level::File) => ["rpc_secret", "rpc_secret_file"],
            (SecretName::AdminToken, Level::Flag) => ["--admin-token", "--admin-token-file"],
            (SecretName::AdminToken, Level::Environment) => ["GARAGE_ADMIN_TOKEN", "GARAGE_ADMIN_TOKEN_FILE"],
            (SecretName::AdminToken, Level::File) => ["admin.admin_token", "admin.admin_token_file"],
            (SecretName::MetricsToken, Level::Flag) => ["--metrics-token", "--metrics-token-file"],
            (SecretName::MetricsToken, Level::Environment) => ["GARAGE_METRICS_TOKEN", "GARAGE_METRICS_TOKEN_FILE"],
            (SecretName::MetricsToken, Level::File) => ["admin.metrics_token", "admin.metrics_token_file"],
        }
    }

    fn at_level(self, level: Level, input: &SecretInput) -> Result<Option<SecretSource>, ConfigError> {
        match (&input.inline, &input.file) {
            (None, None) => Ok(None),
            (Some(secret), None) => Ok(Some(SecretSource::Inline(secret.clone()))),
            (None, Some(path)) => Ok(Some(SecretSource::File(path.clone()))),
            (Some(_), Some(_)) => {
                let [first, second] = self.spellings(level).map(str::to_owned);
                Err(ConfigError::Conflict { first, second, instead: "keep one of them" })
            }
        }
    }

    /// The strongest level that says anything decides.
    ///
    /// # Errors
    /// [`ConfigError::Conflict`] when a level gives both spellings, even if a stronger one decides.
    pub fn choose(
        self,
        flags: &Overrides,
        environment: &Overrides,
        file: &SecretInput,
    ) -> Result<Option<SecretSource>, ConfigError> {
        let flag = self.at_level(Level::Flag, flags.input(self))?;
        let environment = self.at_level(Level::Environment, environment.input(self))?;
        let file = self.at_level(Level::File, file)?;
        Ok(flag.or(environment).or(file))
    }
}

impl Overrides {
    fn input(&self, name: SecretName) -> &SecretInput {
        match name {
            SecretName::Rpc => &self.rpc_secret,
            SecretName::AdminToken => &self.admin_token,
            SecretName::MetricsToken => &self.metrics_token,
        }
    }

    /// Reads the environment through `variable`; empty variables count as unset.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for a switch that is neither on nor off.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let input = |name: SecretName| {
            let [inline, file] = name.spellings(Level::Environment);
            SecretInput { inline: variable(inline).map(Secret::new), file: variable(file).map(PathBuf::from) }
        };
        let switch = "GARAGE_ALLOW_WORLD_READABLE_SECRETS";
        let secret_files = match variable(switch).as_deref() {
            None => None,
            Some("true" | "1") => Some(SecretFiles::WorldReadable),
            Some("false" | "0") => Some(SecretFiles::OwnerOnly),
            Some(other) => {
                let found = format!("{other:?}");
                return Err(ConfigError::Value { key: switch.to_owned(), found, expected: "true or false" });
            }
        };
        Ok(Overrides {
            rpc_secret: input(SecretName::Rpc),
            admin_token: input(SecretName::AdminToken),
            metrics_token: input(SecretName::MetricsToken),
            secret_files,
        })
    }
}

/// The bytes of the RPC secret; whitespace around it, as editors leave it in files, is no part of it.
///
/// # Errors
/// [`ConfigError::RpcSecret`] unless it is 64 hexadecimal digits.
pub fn parse_rpc_secret(secret: &Secret) -> Result<[u8; 32], ConfigError> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(secret.expose().trim(), &mut bytes).map_err(|_malformed| ConfigError::RpcSecret)?;
    Ok(bytes)
}
