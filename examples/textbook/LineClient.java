// Sends a line, and prints the line that comes back. It is println that ends the line: after print, readLine would
// wait for ever.
import java.io.*;
import java.net.Socket;

class LineClient {
    public static void main(String[] arguments) throws IOException {
        try (var socket = new Socket("localhost", 12000)) {
            var out = new PrintWriter(socket.getOutputStream(), true);
            var in = new BufferedReader(new InputStreamReader(socket.getInputStream()));
            out.println("what is a socket?");
            System.out.println(in.readLine());
        }
    }
}
