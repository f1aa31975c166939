# Sends ten messages over UDP, each until its answer comes, but no more than ten times.
from socket import socket, timeout, AF_INET, SOCK_DGRAM

client = socket(AF_INET, SOCK_DGRAM)
client.settimeout(0.2)
sent = 0
for number in range(1, 11):
    message = f"message {number}".encode()
    for attempt in range(10):
        client.sendto(message, ("localhost", 12000))
        sent += 1
        try:
            # An answer that comes late or twice is one to an earlier message.
            while client.recv(1024) != message:
                pass
            break
        except timeout:
            print(f"message {number}: no answer, once more")
    else:
        raise SystemExit(f"message {number}: no answer to 10 of them")
print(f"10 messages were answered, {sent} were sent")
client.close()
