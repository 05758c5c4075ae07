//! What a scenario asks for, wherever the plugin runs: in a [`World`](crate::World), or as a
//! component in a node.

use serde_json::Value;
use wormholes_plugin::{Principal, Result};

/// A node with a plugin.
pub trait Drive {
    /// Gives a command to a principal, and waits for the answer.
    ///
    /// # Errors
    /// What the plugin refused, or why it could not be asked.
    fn request(&mut self, of: &Principal, command: &str, arguments: Value) -> Result<Value>;

    /// Asks a principal what changes nothing.
    ///
    /// # Errors
    /// What the plugin refused, or why it could not be asked.
    fn query(&mut self, of: &Principal, command: &str, arguments: Value) -> Result<Value>;

    /// Begins an operation; gives its id, which is the request's.
    ///
    /// # Errors
    /// What the plugin refused, or why it could not be asked.
    fn begin(&mut self, of: &Principal, command: &str, arguments: Value) -> Result<u64>;

    /// Takes what an operation came to, once it ended.
    fn outcome(&mut self, of: &Principal, operation: u64) -> Option<Result<Value>>;

    /// Adds a user to the node, as `wormholes user add`; one who is there is no error.
    fn add_user(&mut self, name: &str);

    /// Ends the node and starts it again, on what was committed.
    fn restart(&mut self);

    /// Lets time pass until `holds` does.
    ///
    /// # Panics
    /// When it never does.
    fn until(&mut self, what: &str, holds: impl FnMut(&mut Self) -> bool)
    where
        Self: Sized;
}
