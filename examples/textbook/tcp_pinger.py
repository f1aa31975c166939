# Sends ten pings over one connection, and reads each answer in pieces of up to 16 bytes.
from socket import create_connection
from time import time

client = create_connection(("localhost", 12000))
for number in range(1, 11):
    message = f"ping number {number} of 10, over TCP".encode()
    start = time()
    client.send(message)
    answer, reads = b"", 0
    while len(answer) < len(message):
        piece = client.recv(16)
        if not piece:
            raise SystemExit("the server has closed the connection")
        answer += piece
        reads += 1
    print(f"{answer.decode()}: {(time() - start) * 1000:.3f} ms, {reads} reads")
client.close()
