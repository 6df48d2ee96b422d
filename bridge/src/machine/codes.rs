//! Error codes as callers see them.

use serde_json::{Map, Value as Json, json};

/// What a caller is told when a call was refused or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    ExtensionNotFound,
    PolicyNotFound,
    ExtensionTimeout,
    DeadlineExceeded,
    ExtensionUnavailable,
    RegistryUnavailable,
    Overloaded,
    ExtensionError,
    ValidatorBlocked,
    TenantNotAllowed,
    PreProcessorFailed,
    PostProcessorFailed,
    InvalidRequest,
    Unauthorized,
    Internal,
}

impl Code {
    /// The word in `error.code`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExtensionNotFound => "extension_not_found",
            Self::PolicyNotFound => "policy_not_found",
            Self::ExtensionTimeout => "extension_timeout",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::ExtensionUnavailable => "extension_unavailable",
            Self::RegistryUnavailable => "registry_unavailable",
            Self::Overloaded => "overloaded",
            Self::ExtensionError => "extension_error",
            Self::ValidatorBlocked => "validator_blocked",
            Self::TenantNotAllowed => "tenant_not_allowed",
            Self::PreProcessorFailed => "pre_processor_failed",
            Self::PostProcessorFailed => "post_processor_failed",
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::Internal => "internal",
        }
    }

    /// The number in `Nats-Service-Error-Code`, like HTTP's.
    pub const fn number(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::ValidatorBlocked | Self::TenantNotAllowed => 403,
            Self::ExtensionNotFound | Self::PolicyNotFound => 404,
            Self::Internal => 500,
            Self::ExtensionError | Self::PreProcessorFailed | Self::PostProcessorFailed => 502,
            Self::ExtensionUnavailable | Self::RegistryUnavailable | Self::Overloaded => 503,
            Self::ExtensionTimeout | Self::DeadlineExceeded => 504,
        }
    }
}

/// A refusal or failure on its way to the caller. Details name ids and numbers, never bodies.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What to tell.
    pub code: Code,
    /// In words.
    pub message: String,
    /// Ids and numbers.
    pub details: Map<String, Json>,
    /// It is among the refusals that the metrics show already.
    pub counted: bool,
}

impl Failure {
    /// A failure without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Map::new(),
            counted: false,
        }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Json>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// What the reply has under `error`.
    pub fn error(&self) -> Json {
        json!({"code": self.code.as_str(), "message": self.message, "details": self.details})
    }

    /// The body of the reply.
    pub fn body(&self) -> Vec<u8> {
        json!({"ok": false, "error": self.error()}).to_string().into_bytes()
    }
}
