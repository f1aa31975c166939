# Sends ten pings, one after the other, and waits a second for each answer.
from socket import socket, timeout, AF_INET, SOCK_DGRAM
from time import time

client = socket(AF_INET, SOCK_DGRAM)
client.settimeout(1)
times = []
for number in range(1, 11):
    start = time()
    client.sendto(f"ping {number} {start}".encode(), ("localhost", 12000))
    try:
        answer = b""
        # An answer that comes late or twice is one to an earlier ping.
        while f" {number} ".encode() not in answer:
            answer = client.recv(1024)
        times.append(time() - start)
        print(f"{answer.decode(errors='replace')}: {times[-1] * 1000:.3f} ms")
    except timeout:
        print("request timed out")
print(f"{10 - len(times)} of 10 lost")
client.close()
