# Sends a line over a connection, and prints what one read returns.
from socket import socket, AF_INET, SOCK_STREAM

client = socket(AF_INET, SOCK_STREAM)
client.connect(("localhost", 12000))
sentence = input("a sentence in lower case: ")
client.send(sentence.encode())
answer = client.recv(1024)
print(answer.decode())
client.close()
