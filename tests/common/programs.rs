//! The servers of courses, in Python: they listen on the port that is their argument, or on a free one.
#![allow(dead_code, reason = "each test file uses a part of it")]

/// Over TCP; `serve` says what is done with a client `c`, in one line or in several.
pub(crate) fn tcp(serve: &str) -> String {
    format!(
        "import socket, sys, threading\n\
         s = socket.socket()\n\
         s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
         s.bind(('127.0.0.1', int(sys.argv[1]) if len(sys.argv) > 1 else 0))\n\
         s.listen(1)\n\
         print('listening on %s:%d' % s.getsockname(), file=sys.stderr)\n\
         def echo(c):\n\
         \x20   try:\n\
         \x20       while data := c.recv(4096): c.sendall(data)\n\
         \x20   except ConnectionError: pass\n\
         \x20   c.close()\n\
         while True:\n\
         \x20   c, _ = s.accept()\n\
         \x20   {serve}\n"
    )
}

/// One client at a time; what is read is decoded, whatever that is, and reads may be short.
pub(crate) fn decoding(read: &str, rest: &str) -> String {
    tcp(&format!("\n    while data := c.recv({read}).decode():\n        {rest}\n    c.close()"))
}

pub(crate) const ECHO: &str = "c.sendall(data.encode())";
pub(crate) const UPPER: &str = "c.sendall(data.upper().encode())";

/// A thread for each client.
pub(crate) fn threaded() -> String {
    tcp("threading.Thread(target=echo, args=(c,)).start()")
}

/// Closes after one message, which it answers with this.
pub(crate) fn once(answer: &str) -> String {
    tcp(&format!("data = c.recv(1024); c.sendall({answer}); c.close()"))
}

/// Over UDP; `answer` is made of `data`.
pub(crate) fn udp(answer: &str) -> String {
    format!(
        "import socket, sys\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.bind(('127.0.0.1', int(sys.argv[1]) if len(sys.argv) > 1 else 0))\n\
         print('listening on %s:%d' % s.getsockname(), file=sys.stderr)\n\
         while True:\n\
         \x20   data, who = s.recvfrom(2048)\n\
         \x20   s.sendto({answer}, who)\n"
    )
}
