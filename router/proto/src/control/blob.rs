//! Blobs, as control carries them: piece by piece, in base64.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// For whose command a blob is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobBeginParams {
    /// The plugin, as config.toml names it.
    pub instance: String,
    /// The user that it is for; none: the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// The next bytes of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobAppendParams {
    /// What `blob.begin` returned.
    pub upload: u64,
    /// In base64; a request has at most 64 KiB.
    pub bytes: String,
}

/// A blob that comes on this connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobParams {
    /// What `blob.begin` returned.
    pub upload: u64,
}

/// A blob that comes: it is gone with the connection, if no plugin holds it by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlobUpload {
    /// Its number on this connection: an argument of a command is `{"upload": NUMBER}`.
    pub upload: u64,
    /// How many bytes came.
    pub length: u64,
}

/// A blob of which all bytes came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlobInfo {
    /// BLAKE3 of its bytes, as `b3sum` prints it.
    pub hash: String,
    /// How many bytes it has.
    pub length: u64,
}

/// Which part of a blob to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobReadParams {
    /// The plugin that holds it, as config.toml names it.
    pub instance: String,
    /// For this user; none: for the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// BLAKE3 of its bytes.
    pub hash: String,
    /// Where to begin; default 0.
    #[serde(default)]
    pub from: u64,
}

/// A part of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlobBytes {
    /// At most 256 KiB of it, in base64; empty where it ends.
    pub bytes: String,
    /// How many bytes it has in all.
    pub length: u64,
}
