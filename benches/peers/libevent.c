// An echo server in the idiom of libevent: a bufferevent for each connection, whose input is moved to its output.
// Measured with libevent 2.1.12 (Debian 12).
#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>

enum { CHUNK = 64 * 1024, BATCH = 64, HIGH = 1 << 20 };

static void on_read(struct bufferevent *client, void *context) {
    (void)context;
    struct evbuffer *output = bufferevent_get_output(client);
    bufferevent_read_buffer(client, output);
    // The client does not read: nothing more of it is read until all has left.
    if (evbuffer_get_length(output) > HIGH) bufferevent_disable(client, EV_READ);
}

static void on_written(struct bufferevent *client, void *context) {
    (void)context;
    bufferevent_enable(client, EV_READ);
}

// A FIN while replies wait: the connection ends when they have left.
static void on_last_written(struct bufferevent *client, void *context) {
    (void)context;
    bufferevent_free(client);
}

static void on_end(struct bufferevent *client, short what, void *context) {
    (void)context;
    if ((what & BEV_EVENT_EOF) && evbuffer_get_length(bufferevent_get_output(client)))
        bufferevent_setcb(client, NULL, on_last_written, on_end, NULL);
    else
        bufferevent_free(client);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *from, int size, void *context) {
    (void)from, (void)size, (void)context;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct event_base *base = evconnlistener_get_base(listener);
    struct bufferevent *client = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!client) {
        evutil_closesocket(fd);
        return;
    }
    bufferevent_set_max_single_read(client, CHUNK);
    bufferevent_set_max_single_write(client, CHUNK);
    bufferevent_setcb(client, on_read, on_written, on_end, NULL);
    bufferevent_enable(client, EV_READ | EV_WRITE);
}

static void on_datagrams(evutil_socket_t udp, short what, void *context) {
    static char chunk[CHUNK];
    (void)what, (void)context;
    for (int i = 0; i < BATCH; i++) {
        struct sockaddr_in from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(udp, chunk, CHUNK, 0, (struct sockaddr *)&from, &size);
        if (length < 0) break;
        sendto(udp, chunk, (size_t)length, 0, (struct sockaddr *)&from, size);
    }
}

int main(int count, char **words) {
    if (count != 2) return fputs("usage: libevent PORT\n", stderr), 2;
    struct sockaddr_in here = {AF_INET, htons((uint16_t)atoi(words[1])), {htonl(INADDR_LOOPBACK)}, {0}};
    struct event_base *base = event_base_new();
    struct evconnlistener *listener = evconnlistener_new_bind(
        base, on_accept, NULL, LEV_OPT_REUSEABLE, 4096, (struct sockaddr *)&here, sizeof here);
    int udp = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), space = 4 << 20;
    setsockopt(udp, SOL_SOCKET, SO_RCVBUF, &space, sizeof space);
    if (!listener || bind(udp, (struct sockaddr *)&here, sizeof here)) return perror("libevent"), 1;
    event_add(event_new(base, udp, EV_READ | EV_PERSIST, on_datagrams, NULL), NULL);
    return event_base_dispatch(base);
}
