#!/usr/bin/env python3
"""An echo server in the idiom of Python's asyncio: a protocol object for each connection.

Measured with Python 3.11 and its own event loop.
"""

import asyncio
import socket
import sys


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

    # The client does not read: nothing more of it is read meanwhile.
    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()


class EchoDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)


async def main(here):
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(EchoDatagrams, here)
    server = await loop.create_server(Echo, *here, backlog=4096)
    await server.serve_forever()


asyncio.run(main(("127.0.0.1", int(sys.argv[1]))))
