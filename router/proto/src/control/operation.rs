//! Operations of plugins, and the users whom plugins may have principals for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{frame::RpcError, plugin::PluginProgress};

/// What `op.start` returns: one of both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OperationStarted {
    /// The plugin's answer, where it had one at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Value>,
    /// What goes on, and is durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationInfo>,
}

/// Operations to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationListParams {
    /// Those of this user only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// What `op.list` returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OperationList {
    /// Those that go on, and those that ended and whose results are kept, the oldest first; at most
    /// 400, the newest ones.
    pub operations: Vec<OperationInfo>,
    /// How many older ones there are.
    pub more: u64,
}

/// An operation, by its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationParams {
    /// As `op.list` shows it.
    pub operation: u64,
}

/// An operation to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationWaitParams {
    /// As `op.list` shows it.
    pub operation: u64,
    /// Answers when it has more `changes` than these, or has ended, and after 20 seconds; none: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
}

/// An operation of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OperationInfo {
    /// Its id: no other one of this node has it, ever.
    pub operation: u64,
    /// The instance that is at it.
    pub instance: String,
    /// The user that it is for; none: the node.
    pub user: Option<String>,
    /// The command.
    pub command: String,
    /// Its arguments, a JSON object; cut after 1 KiB.
    pub arguments: String,
    /// Milliseconds since 1970.
    pub began_unix_ms: u64,
    /// When it is canceled; none: never.
    pub deadline_unix_ms: Option<u64>,
    /// How far it is.
    pub progress: PluginProgress,
    /// When it ended: its result is kept for a day since then.
    pub ended_unix_ms: Option<u64>,
    /// Rises with each change, until the node starts anew.
    pub changes: u64,
    /// What it came to: the plugin's answer, in what `op.wait` returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed, or that it was canceled, in what `op.wait` returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RpcError>,
}

/// A user, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserParams {
    /// A small letter, then small letters, digits and `-`; at most 32.
    pub name: String,
}

/// A user to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserRemoveParams {
    /// As `user.list` shows it.
    pub name: String,
    /// Deletes all that plugins keep for the user, for ever; default: it stays until he is added again.
    #[serde(default)]
    pub purge: bool,
}

/// What `user.list` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserList {
    /// All users, by name.
    pub users: Vec<UserInfo>,
}

/// A user of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserInfo {
    /// The name.
    pub name: String,
    /// Whether there is such a user now.
    pub standing: UserStanding,
    /// When the user was added: milliseconds since 1970.
    pub added_unix_ms: u64,
}

/// Whether a user is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UserStanding {
    /// Plugins run for the user.
    Active,
    /// What plugins keep for the user stays, and nothing runs, until `user.add`.
    Removed,
    /// Nothing is kept but the name, which is not given again.
    Purged,
}
