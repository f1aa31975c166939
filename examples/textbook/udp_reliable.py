# Sends ten messages over UDP, each until its answer comes.
from socket import socket, timeout, AF_INET, SOCK_DGRAM

client = socket(AF_INET, SOCK_DGRAM)
client.settimeout(0.2)
sent = 0
for number in range(1, 11):
    message = f"message {number}".encode()
    answer = None
    while answer != message:
        client.sendto(message, ("localhost", 12000))
        sent += 1
        try:
            answer, server = client.recvfrom(1024)
        except timeout:
            print(f"message {number}: no answer, once more")
print(f"10 messages were answered, {sent} were sent")
client.close()
