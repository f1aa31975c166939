// An echo server in the idiom of Go: a goroutine for each connection, which copies it to itself.
// Measured with Go 1.19.8 (Debian 12) and its defaults.
package main

import (
	"io"
	"log"
	"net"
	"os"
)

func echo(client net.Conn) {
	defer client.Close()
	io.Copy(client, client)
}

func echoDatagrams(udp net.PacketConn) {
	buffer := make([]byte, 64<<10)
	for {
		length, from, err := udp.ReadFrom(buffer)
		if err == nil {
			udp.WriteTo(buffer[:length], from)
		}
	}
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: go PORT")
	}
	here := "127.0.0.1:" + os.Args[1]
	udp, err := net.ListenPacket("udp", here)
	if err != nil {
		log.Fatal(err)
	}
	udp.(*net.UDPConn).SetReadBuffer(4 << 20)
	go echoDatagrams(udp)
	listener, err := net.Listen("tcp", here)
	if err != nil {
		log.Fatal(err)
	}
	for {
		if client, err := listener.Accept(); err == nil {
			go echo(client)
		}
	}
}
