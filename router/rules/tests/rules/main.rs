//! The crate from outside, as the daemon uses it.

#[cfg(test)]
mod asked;
#[cfg(test)]
mod common;
#[cfg(test)]
mod i2p;
#[cfg(test)]
mod migrate;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod punch;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod warnings;
