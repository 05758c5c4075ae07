//! Which program holds the other end of a local connection.
//!
//! The kernel's socket diagnostics (sock_diag(7)) give a socket's user and inode in one request;
//! the inode leads to a process through `/proc/<pid>/fd`. Nothing is cached: a port is reused
//! within seconds. What is kept is a list of processes to look at first, and each is looked at
//! again.

use std::{
    collections::VecDeque,
    fs, io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use wormholes_proto::{Reader, WireError};

/// Programs that opened connections of late; a browser opens dozens in a row.
const MAX_RECENT: usize = 16;
/// The kernel answers while the request is sent; this bounds a surprise.
const REPLY_TIMEOUT: Duration = Duration::from_millis(100);

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: u32 = 72;

/// The program at the other end of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Program {
    /// Its user.
    pub(crate) uid: Option<u32>,
    /// Its process; none when it was not asked for or is not visible from here.
    pub(crate) pid: Option<u32>,
    /// Its executable.
    pub(crate) path: Option<PathBuf>,
}

/// Looks programs up.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    recent: Mutex<VecDeque<u32>>,
}

impl Program {
    /// The executable's name without its folder.
    pub(crate) fn app(&self) -> Option<String> {
        let name = self.path.as_ref()?.file_name()?;
        Some(name.to_string_lossy().into_owned())
    }
}

impl Programs {
    /// The program whose end is `theirs` and that connected to `ours`. Blocks for up to some
    /// milliseconds when `with_process`, else for some microseconds.
    pub(crate) fn find(
        &self,
        theirs: SocketAddr,
        ours: SocketAddr,
        with_process: bool,
    ) -> Option<Program> {
        let (uid, inode) = socket_owner(theirs, ours).ok()?;
        let mut program = Program {
            uid: Some(uid),
            ..Program::default()
        };
        if with_process && let Some(pid) = self.process(uid, inode) {
            program.pid = Some(pid);
            program.path = executable(pid);
        }
        Some(program)
    }

    fn process(&self, uid: u32, inode: u32) -> Option<u32> {
        let link = PathBuf::from(format!("socket:[{inode}]"));
        let lock = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let recent: Vec<u32> = lock().iter().copied().collect();
        let known = recent.into_iter().find(|pid| holds(*pid, &link));
        let pid = known.or_else(|| {
            let pids = fs::read_dir("/proc").ok()?.filter_map(pid_of);
            pids.filter(|pid| owner(*pid) == Some(uid))
                .find(|pid| holds(*pid, &link))
        })?;
        let mut recent = lock();
        recent.retain(|other| *other != pid);
        recent.push_front(pid);
        recent.truncate(MAX_RECENT);
        Some(pid)
    }
}

fn pid_of(entry: io::Result<fs::DirEntry>) -> Option<u32> {
    entry.ok()?.file_name().to_str()?.parse().ok()
}

fn owner(pid: u32) -> Option<u32> {
    let metadata = fs::metadata(format!("/proc/{pid}")).ok()?;
    Some(metadata.uid())
}

fn holds(pid: u32, link: &Path) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files
        .filter_map(Result::ok)
        .any(|file| fs::read_link(file.path()).is_ok_and(|to| to == link))
}

fn executable(pid: u32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // An executable that was replaced while it runs.
    let text = path.to_str()?;
    Some(text.strip_suffix(" (deleted)").unwrap_or(text).into())
}

/// User and inode of the socket at `theirs`.
fn socket_owner(theirs: SocketAddr, ours: SocketAddr) -> io::Result<(u32, u32)> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(REPLY_TIMEOUT))?;
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &request(theirs, ours), SendFlags::empty(), &kernel)?;
    let mut reply = [MaybeUninit::uninit(); 512];
    let ((reply, _), _) = rustix::net::recv(&socket, &mut reply, RecvFlags::empty())?;
    parse_reply(reply).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`: one socket by its addresses, no dump.
fn request(theirs: SocketAddr, ours: SocketAddr) -> Vec<u8> {
    let (theirs_ip, ours_ip) = (theirs.ip().to_canonical(), ours.ip().to_canonical());
    let mut bytes = Vec::with_capacity(REQUEST_BYTES as usize);
    bytes.extend(REQUEST_BYTES.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port id: the socket is used once.
    bytes.extend([0; 8]);
    let family = if theirs_ip.is_ipv4() {
        AF_INET
    } else {
        AF_INET6
    };
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    // Sockets in any state.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(theirs.port().to_be_bytes());
    bytes.extend(ours.port().to_be_bytes());
    bytes.extend(wide(theirs_ip));
    bytes.extend(wide(ours_ip));
    // Any interface, no cookie.
    bytes.extend([0; 4]);
    bytes.extend([0xff; 8]);
    bytes
}

/// An address in the 16 bytes that diagnostics give both families.
fn wide(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// `struct inet_diag_msg` after its header: user and inode are its last fields.
fn parse_reply(reply: &[u8]) -> Result<(u32, u32), WireError> {
    let mut reader = Reader::new(reply);
    reader.bytes(4, "length")?;
    let kind = u16::from_ne_bytes(reader.array("kind")?);
    if kind != SOCK_DIAG_BY_FAMILY {
        return Err(WireError::Invalid("kind"));
    }
    reader.bytes(HEADER_BYTES - 6, "header")?;
    reader.bytes(4 + 48 + 12, "socket")?;
    let uid = u32::from_ne_bytes(reader.array("uid")?);
    let inode = u32::from_ne_bytes(reader.array("inode")?);
    Ok((uid, inode))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn check(listen: &str) {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, theirs) = listener.accept().unwrap();
        let ours = server.local_addr().unwrap();
        let programs = Programs::default();
        for _ in 0..2 {
            let program = programs.find(theirs, ours, true).unwrap();
            assert_eq!(program.uid, Some(rustix::process::getuid().as_raw()));
            assert_eq!(program.pid, Some(std::process::id()));
            assert_eq!(program.path, std::env::current_exe().ok());
            assert!(program.app().unwrap().starts_with("wormholed"));
        }
        assert_eq!(programs.find(theirs, ours, false).unwrap().pid, None);
        drop(client);
    }

    #[test]
    fn the_program_of_a_connection_is_found() {
        check("127.0.0.1:0");
        check("[::1]:0");
    }

    #[test]
    fn nobody_holds_an_address_that_is_not_connected() {
        let gone = "127.0.0.1:1".parse().unwrap();
        assert_eq!(Programs::default().find(gone, gone, true), None);
    }
}
