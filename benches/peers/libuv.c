// An echo server in the idiom of libuv: one loop, a try-write first, and a queued write for the rest.
// Measured with libuv 1.44.2 (Debian 12).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { CHUNK = 64 * 1024, BATCH = 20 }; // 20 datagrams are what one recvmmsg of libuv takes

// A write that waits for room, with its bytes.
struct pending {
    union {
        uv_write_t write;
        uv_udp_send_t send;
    };
    char bytes[];
};

static char chunk[CHUNK * BATCH];

static struct pending *pend(uv_buf_t *rest) {
    struct pending *pending = malloc(sizeof *pending + rest->len);
    if (!pending) abort();
    memcpy(pending->bytes, rest->base, rest->len);
    rest->base = pending->bytes;
    return pending;
}

static void release(uv_handle_t *handle) { free(handle); }

static void lend(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
    (void)suggested;
    *buffer = uv_buf_init(chunk, handle->type == UV_UDP ? sizeof chunk : CHUNK);
}

static void on_read(uv_stream_t *stream, ssize_t length, const uv_buf_t *buffer);

static void on_written(uv_write_t *request, int status) {
    if (status == 0) uv_read_start(request->handle, lend, on_read);
    else if (status != UV_ECANCELED) uv_close((uv_handle_t *)request->handle, release);
    free(request);
}

static void on_read(uv_stream_t *stream, ssize_t length, const uv_buf_t *buffer) {
    if (length == 0) return;
    uv_buf_t reply = uv_buf_init(buffer->base, length > 0 ? (unsigned)length : 0);
    int sent = length > 0 ? uv_try_write(stream, &reply, 1) : (int)length;
    if (sent < 0 && sent != UV_EAGAIN) {
        uv_close((uv_handle_t *)stream, release);
    } else if (sent < length) {
        unsigned taken = sent > 0 ? (unsigned)sent : 0;
        uv_buf_t rest = uv_buf_init(reply.base + taken, (unsigned)reply.len - taken);
        uv_write_t *request = &pend(&rest)->write;
        uv_read_stop(stream);
        uv_write(request, stream, &rest, 1, on_written);
    }
}

static void on_connection(uv_stream_t *listener, int status) {
    uv_tcp_t *client = status == 0 ? malloc(sizeof *client) : NULL;
    if (!client) return;
    uv_tcp_init(listener->loop, client);
    if (uv_accept(listener, (uv_stream_t *)client) == 0) {
        uv_tcp_nodelay(client, 1);
        uv_read_start((uv_stream_t *)client, lend, on_read);
    } else {
        uv_close((uv_handle_t *)client, release);
    }
}

static void on_sent(uv_udp_send_t *request, int status) {
    (void)status;
    free(request);
}

static void on_datagram(uv_udp_t *udp, ssize_t length, const uv_buf_t *buffer, const struct sockaddr *from, unsigned flags) {
    (void)flags;
    if (length < 0 || !from) return;
    uv_buf_t reply = uv_buf_init(buffer->base, (unsigned)length);
    if (uv_udp_try_send(udp, &reply, 1, from) == UV_EAGAIN) {
        uv_udp_send_t *request = &pend(&reply)->send;
        uv_udp_send(request, udp, &reply, 1, from, on_sent);
    }
}

int main(int count, char **words) {
    if (count != 2) return fputs("usage: libuv PORT\n", stderr), 2;
    uv_loop_t *loop = uv_default_loop();
    struct sockaddr_in here;
    uv_tcp_t listener;
    uv_udp_t udp;
    int space = 4 << 20;
    uv_ip4_addr("127.0.0.1", atoi(words[1]), &here);
    uv_tcp_init(loop, &listener);
    uv_udp_init_ex(loop, &udp, AF_INET | UV_UDP_RECVMMSG);
    int error = uv_tcp_bind(&listener, (struct sockaddr *)&here, 0);
    if (!error) error = uv_listen((uv_stream_t *)&listener, 4096, on_connection);
    if (!error) error = uv_udp_bind(&udp, (struct sockaddr *)&here, 0);
    if (!error) error = uv_recv_buffer_size((uv_handle_t *)&udp, &space);
    if (!error) error = uv_udp_recv_start(&udp, lend, on_datagram);
    if (error) return fprintf(stderr, "libuv: %s\n", uv_strerror(error)), 1;
    return uv_run(loop, UV_RUN_DEFAULT);
}
