//! Scripts that try to hold up or fill up the node: each is refused when it is loaded, or ends in
//! block within 50 ms and 64 MiB.

#[cfg(test)]
#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
mod allocator;
#[cfg(test)]
mod bodies;
#[cfg(test)]
mod runs;
