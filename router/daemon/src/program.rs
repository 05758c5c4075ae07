//! Which program holds the other end of a local connection, and whether one does.
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

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt},
};
use wormholes_proto::{Reader, Transport, WireError};

/// Programs that opened connections of late; a browser opens dozens in a row.
const MAX_RECENT: usize = 16;
/// The kernel answers while the request is sent; this bounds a surprise.
const REPLY_TIMEOUT: Duration = Duration::from_millis(100);

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
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

/// What the kernel says of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    state: u8,
    uid: u32,
    /// 0: no program holds it, and whose it was is not known either.
    inode: u32,
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
    /// The program whose end is `theirs` and that connected, or sends, to `ours`. Blocks for up to some
    /// milliseconds when `with_process`, else for some microseconds.
    pub(crate) fn find(
        &self,
        transport: Transport,
        theirs: SocketAddr,
        ours: SocketAddr,
        with_process: bool,
    ) -> Option<Program> {
        let socket = socket(transport, theirs, ours).ok()?;
        let Socket { uid, inode, .. } = socket.filter(|socket| socket.inode != 0)?;
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

/// Whether the program at `theirs` let go of its connection to `ours`. One that only ended what it
/// sends still holds it, and of one on another machine only a reset is known. Takes some
/// microseconds.
pub(crate) fn has_left(theirs: SocketAddr, ours: SocketAddr) -> bool {
    match socket(Transport::Tcp, theirs, ours) {
        Ok(Some(theirs)) => theirs.inode == 0 && theirs.state != TCP_ESTABLISHED,
        // The socket here goes with a reset, and stays when the other one is elsewhere.
        Ok(None) => matches!(socket(Transport::Tcp, ours, theirs), Ok(None)),
        Err(_) => false,
    }
}

/// The socket at `near` that is connected to `far`, or of UDP hears from there; none when there is
/// none here.
fn socket(transport: Transport, near: SocketAddr, far: SocketAddr) -> io::Result<Option<Socket>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(REPLY_TIMEOUT))?;
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(
        &socket,
        &request(transport, near, far),
        SendFlags::empty(),
        &kernel,
    )?;
    let mut reply = [MaybeUninit::uninit(); 512];
    let ((reply, _), _) = rustix::net::recv(&socket, &mut reply, RecvFlags::empty())?;
    let parsed =
        parse_reply(reply).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
    match parsed? {
        // What the kernel finds in place of a connection that is gone.
        Reply::Socket(Socket {
            state: TCP_LISTEN, ..
        }) => Ok(None),
        Reply::Socket(socket) => Ok(Some(socket)),
        Reply::Error(Errno::NOENT) => Ok(None),
        Reply::Error(error) => Err(error.into()),
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`: one socket by its addresses, no dump.
fn request(transport: Transport, near: SocketAddr, far: SocketAddr) -> Vec<u8> {
    // For UDP the kernel looks for who receives what goes from the one to the other.
    let (protocol, near, far) = match transport {
        Transport::Tcp => (IPPROTO_TCP, near, far),
        Transport::Udp => (IPPROTO_UDP, far, near),
    };
    let (near_ip, far_ip) = (near.ip().to_canonical(), far.ip().to_canonical());
    let mut bytes = Vec::with_capacity(REQUEST_BYTES as usize);
    bytes.extend(REQUEST_BYTES.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port id: the socket is used once.
    bytes.extend([0; 8]);
    let family = if near_ip.is_ipv4() { AF_INET } else { AF_INET6 };
    bytes.extend([family, protocol, 0, 0]);
    // Sockets in any state.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(near.port().to_be_bytes());
    bytes.extend(far.port().to_be_bytes());
    bytes.extend(wide(near_ip));
    bytes.extend(wide(far_ip));
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

/// What the kernel answers.
enum Reply {
    Socket(Socket),
    Error(Errno),
}

/// `struct nlmsghdr`, then `struct inet_diag_msg` or the errno of `struct nlmsgerr`.
fn parse_reply(reply: &[u8]) -> Result<Reply, WireError> {
    let mut reader = Reader::new(reply);
    reader.bytes(4, "length")?;
    let kind = u16::from_ne_bytes(reader.array("kind")?);
    reader.bytes(HEADER_BYTES - 6, "header")?;
    match kind {
        SOCK_DIAG_BY_FAMILY => {
            reader.bytes(1, "family")?;
            let state = reader.u8("state")?;
            reader.bytes(2 + 48 + 12, "socket")?;
            Ok(Reply::Socket(Socket {
                state,
                uid: u32::from_ne_bytes(reader.array("uid")?),
                inode: u32::from_ne_bytes(reader.array("inode")?),
            }))
        }
        NLMSG_ERROR => {
            let error = i32::from_ne_bytes(reader.array("error")?);
            Ok(Reply::Error(Errno::from_raw_os_error(error.wrapping_neg())))
        }
        _ => Err(WireError::Invalid("kind")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream, UdpSocket},
    };

    use super::*;

    #[test]
    fn the_program_behind_a_datagram_is_found_whether_it_connected_or_not() {
        for (listen, from) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1:0", "0.0.0.0:0"),
            ("127.0.0.1:0", "[::]:0"),
            ("[::1]:0", "[::]:0"),
        ] {
            let entrance = UdpSocket::bind(listen).unwrap();
            let ours = entrance.local_addr().unwrap();
            let client = UdpSocket::bind(from).unwrap();
            let to = match (ours.ip(), from) {
                (IpAddr::V4(ip), "[::]:0") => (ip.to_ipv6_mapped().into(), ours.port()),
                (ip, _) => (ip, ours.port()),
            };
            client.send_to(b"x", to).unwrap();
            let (_, theirs) = entrance.recv_from(&mut [0; 1]).unwrap();
            let programs = Programs::default();
            let found = || programs.find(Transport::Udp, theirs, ours, true);
            assert_eq!(found().unwrap().pid, Some(std::process::id()), "{from}");
            client.connect(to).unwrap();
            assert_eq!(found().unwrap().pid, Some(std::process::id()), "{from}");
        }
    }

    fn check(listen: &str) {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, theirs) = listener.accept().unwrap();
        let ours = server.local_addr().unwrap();
        let programs = Programs::default();
        for _ in 0..2 {
            let program = programs.find(Transport::Tcp, theirs, ours, true).unwrap();
            assert_eq!(program.uid, Some(rustix::process::getuid().as_raw()));
            assert_eq!(program.pid, Some(std::process::id()));
            assert_eq!(program.path, std::env::current_exe().ok());
            assert!(program.app().unwrap().starts_with("wormholed"));
        }
        let found = programs.find(Transport::Tcp, theirs, ours, false);
        assert_eq!(found.unwrap().pid, None);
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
        assert_eq!(
            Programs::default().find(Transport::Tcp, gone, gone, true),
            None
        );
        assert!(has_left(gone, gone));
    }

    /// Whether a client has left after `act`, which gives back what it holds.
    fn check_left(act: impl Fn(TcpStream) -> Option<TcpStream>, expected: bool) {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(listen).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, theirs) = listener.accept().unwrap();
            let ours = server.local_addr().unwrap();
            assert!(!has_left(theirs, ours));
            let kept = act(client);
            // The kernel sends the FIN before it lets go of the socket.
            let mut looks = 0;
            while has_left(theirs, ours) != expected && looks < 1000 {
                std::thread::yield_now();
                looks += 1;
            }
            assert_eq!(has_left(theirs, ours), expected, "{listen}");
            let found = Programs::default().find(Transport::Tcp, theirs, ours, false);
            assert_eq!(found.is_none(), expected, "nobody's socket is not root's");
            drop(kept);
        }
    }

    #[test]
    fn a_program_has_left_when_it_holds_its_socket_no_longer() {
        let send = |mut client: &TcpStream| client.write_all(b"a request").unwrap();
        check_left(Some, false);
        check_left(
            |client| {
                send(&client);
                client.shutdown(std::net::Shutdown::Write).unwrap();
                Some(client)
            },
            false,
        );
        check_left(|_client| None, true);
        check_left(
            |client| {
                send(&client);
                None
            },
            true,
        );
        check_left(
            |client| {
                let now = Some(Duration::ZERO);
                socket2::SockRef::from(&client).set_linger(now).unwrap();
                None
            },
            true,
        );
    }
}
