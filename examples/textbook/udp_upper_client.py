# Sends a line as a datagram, and prints the answer: waits for ever where either of them is lost.
from socket import socket, AF_INET, SOCK_DGRAM

client = socket(AF_INET, SOCK_DGRAM)
sentence = input("a sentence in lower case: ")
client.sendto(sentence.encode(), ("localhost", 12000))
answer, server = client.recvfrom(1024)
print(answer.decode())
client.close()
