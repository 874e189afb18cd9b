/* What do four vLLM servers answer when they cost nothing?
 *
 *   cc -O2 -o upstream upstream.c
 *   ./upstream --model bench-model --port 9001 --port 9002 --port 9003 --port 9004
 *
 * A stand-in for vLLM 0.32's OpenAI server, so cheap that it is never what limits a gateway: one thread, epoll,
 * keep-alive, TCP_NODELAY, each event of a stream one send(), as vLLM does it (role chunk and first content chunk
 * apart: a gateway without TCP_NODELAY loses 40 ms there, and shall). Every port is a replica with counters of
 * its own.
 *
 * A request carries a ticket, `#` and twelve digits, anywhere in its body; its answer carries the same, in every
 * content chunk of a stream. So the client can tell that an answer belongs to its request. A content chunk reads
 * ` w<number>@<CLOCK_MONOTONIC in microseconds>#<ticket>`: order, completeness and delay can be checked too.
 *
 *   GET /_config?chunks=64&gap_us=20000&delay_us=0&fault=0   any subset; for all ports
 *   GET /_stats                                              counters of all ports, and of each
 *
 * Faults are for those who check the client: 1 hangs up in the middle, 2 leaves a chunk out, 3 answers with
 * another ticket, 4 answers 500, 5 ends a stream without its usage.
 *
 * It does not tokenize, batch, or slow down under load. Loopback only. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORTS_MAX = 16, EVENTS = 256, TICKET_DIGITS = 12 };
enum fault { NONE, HANG_UP, LEAVE_OUT, OTHER_TICKET, STATUS_500, NO_USAGE };
enum state { READING, WAITING, STREAMING };

typedef struct {
  int is_listener, fd, number; /* number: which port, from 0 */
  uint64_t chats, streams, streams_done, hung_up, probes, others, connections;
  uint64_t prompt_tokens, generated_tokens;
} replica;

typedef struct {
  int is_listener, fd; /* the same beginning as a replica's, so that epoll's pointer tells them apart */
  replica *at;
  enum state state;
  char *in, *out;
  size_t in_length, in_capacity, out_length, out_sent, out_capacity;
  int place; /* in the heap of timers; -1: in none */
  uint64_t due_us, ticket, id, prompt_tokens;
  int chunk, wants_usage, closes, waits_to_send, is_chat;
} connection;

static replica replicas[PORTS_MAX];
static int replica_count, epoll, chunks = 64, fault_now = NONE;
static uint64_t delay_us = 0, gap_us = 20000, id_now = 0;
static const char *model = "bench-model";
static const int ONE = 1;

static uint64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void *grown(void *memory, size_t size) {
  memory = realloc(memory, size);
  if (!memory) abort();
  return memory;
}

/* ------------------------------------------------------------------------------- timers: a binary heap */
static connection **heap;
static int heap_length, heap_capacity;

static void put_at(int place, connection *one) { heap[place] = one; one->place = place; }

static void sift_up(int place) {
  connection *one = heap[place];
  for (; place > 0 && heap[(place - 1) / 2]->due_us > one->due_us; place = (place - 1) / 2)
    put_at(place, heap[(place - 1) / 2]);
  put_at(place, one);
}

static void sift_down(int place) {
  connection *one = heap[place];
  for (int child; (child = 2 * place + 1) < heap_length; place = child) {
    if (child + 1 < heap_length && heap[child + 1]->due_us < heap[child]->due_us) child++;
    if (one->due_us <= heap[child]->due_us) break;
    put_at(place, heap[child]);
  }
  put_at(place, one);
}

static void arm(connection *one) {
  if (heap_length == heap_capacity) heap = grown(heap, (heap_capacity = heap_capacity * 2 + 1024) * sizeof *heap);
  put_at(heap_length++, one);
  sift_up(heap_length - 1);
}

static void disarm(connection *one) {
  int place = one->place;
  if (place < 0) return;
  one->place = -1;
  connection *last = heap[--heap_length];
  if (last == one) return;
  put_at(place, last);
  sift_up(place);
  sift_down(last->place);
}

/* ------------------------------------------------------------------------------------------ sending */
static void end_connection(connection *one) {
  if (one->state == STREAMING) one->at->hung_up++;
  disarm(one);
  close(one->fd);
  free(one->in);
  free(one->out);
  free(one);
}

static int send_rest(connection *one) { /* -1: the connection is dead */
  while (one->out_sent < one->out_length) {
    ssize_t sent = send(one->fd, one->out + one->out_sent, one->out_length - one->out_sent, MSG_NOSIGNAL);
    if (sent >= 0) one->out_sent += sent;
    else if (errno == EAGAIN) break;
    else if (errno != EINTR) return -1;
  }
  int waits = one->out_sent < one->out_length;
  if (!waits) one->out_sent = one->out_length = 0;
  if (waits != one->waits_to_send) {
    struct epoll_event event = {.events = EPOLLIN | (waits ? EPOLLOUT : 0), .data.ptr = one};
    epoll_ctl(epoll, EPOLL_CTL_MOD, one->fd, &event);
    one->waits_to_send = waits;
  }
  return 0;
}

static int put(connection *one, const char *text, size_t length) {
  if (one->out_length == 0) {
    ssize_t sent = send(one->fd, text, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return -1;
    if (sent > 0) text += sent, length -= sent;
    if (!length) return 0;
  }
  if (one->out_length + length > one->out_capacity)
    one->out = grown(one->out, one->out_capacity = (one->out_length + length) * 2);
  memcpy(one->out + one->out_length, text, length);
  one->out_length += length;
  return send_rest(one);
}

static int answer(connection *one, const char *status, const char *kind, const char *body) {
  char text[4096];
  int length = snprintf(text, sizeof text,
                        "HTTP/1.1 %s\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
                        "content-length: %zu\r\ncontent-type: %s\r\n\r\n%s", status, strlen(body), kind, body);
  return put(one, text, length);
}

/* --------------------------------------------------------------------------------- what a model says */
static uint64_t ticket_of(connection *one) { return fault_now == OTHER_TICKET ? one->ticket + 1 : one->ticket; }

static int send_completion(connection *one) {
  char body[2048];
  const char *choice = one->is_chat
    ? "\"message\":{\"role\":\"assistant\",\"content\":\"#%012llu: the quick brown fox jumps over the lazy dog while the "
      "gateway counts every token, charges the right team and keeps the tail latency honest for its callers.\","
      "\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,\"tool_calls\":[],\"reasoning\":null}"
    : "\"text\":\"#%012llu\"";
  int generated = one->is_chat ? 36 : 1, length = snprintf(body, sizeof body,
    "{\"id\":\"chatcmpl-%032llx\",\"object\":\"%s\",\"created\":%ld,\"model\":\"%s\",\"choices\":[{\"index\":0,",
    (unsigned long long)one->id, one->is_chat ? "chat.completion" : "text_completion", (long)time(0), model);
  length += snprintf(body + length, sizeof body - length, choice, (unsigned long long)ticket_of(one));
  snprintf(body + length, sizeof body - length,
    ",\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null,\"token_ids\":null}],\"service_tier\":null,"
    "\"system_fingerprint\":null,\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu,\"completion_tokens\":%d,"
    "\"prompt_tokens_details\":null},\"prompt_logprobs\":null,\"prompt_token_ids\":null,\"kv_transfer_params\":null}",
    (unsigned long long)one->prompt_tokens, (unsigned long long)one->prompt_tokens + generated, generated);
  one->state = READING;
  one->at->prompt_tokens += one->prompt_tokens;
  one->at->generated_tokens += generated;
  return answer(one, "200 OK", "application/json", body);
}

static int send_event(connection *one, const char *json) {
  char text[1200];
  return put(one, text, snprintf(text, sizeof text, "%zx\r\ndata: %s\n\n\r\n", strlen(json) + 8, json));
}

static int begin_stream(connection *one, const char *head) {
  static const char status[] = "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
                               "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
  char text[1024];
  if (put(one, status, sizeof status - 1)) return -1;
  snprintf(text, sizeof text, "%s{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                              "\"finish_reason\":null}],\"prompt_token_ids\":null}", head);
  return send_event(one, text);
}

static int end_stream(connection *one, const char *head) { /* -1: dead, 1: over */
  char text[1024];
  if (one->wants_usage && fault_now != NO_USAGE) {
    snprintf(text, sizeof text, "%s],\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu,\"completion_tokens\":%d}}", head,
             (unsigned long long)one->prompt_tokens, (unsigned long long)one->prompt_tokens + chunks, chunks);
    if (send_event(one, text)) return -1;
  }
  if (put(one, "e\r\ndata: [DONE]\n\n\r\n", 19) || put(one, "0\r\n\r\n", 5)) return -1;
  one->state = READING;
  one->at->streams_done++;
  one->at->prompt_tokens += one->prompt_tokens;
  one->at->generated_tokens += chunks;
  return 1;
}

static int step_stream(connection *one, uint64_t now) { /* -1: dead, 0: there is more, 1: over */
  char head[512], text[1024];
  snprintf(head, sizeof head, "{\"id\":\"chatcmpl-%032llx\",\"object\":\"chat.completion.chunk\",\"created\":%ld,\"model\":\"%s\","
                              "\"choices\":[", (unsigned long long)one->id, (long)time(0), model);
  if (one->chunk == 0 && begin_stream(one, head)) return -1;
  one->chunk++;
  if (fault_now == HANG_UP && one->chunk > chunks / 2) return -1;
  int is_last = one->chunk >= chunks;
  if (!(fault_now == LEAVE_OUT && one->chunk == (chunks + 1) / 2)) {
    snprintf(text, sizeof text, "%s{\"index\":0,\"delta\":{\"content\":\" w%03d@%015llu#%012llu\"},\"logprobs\":null,"
             "\"finish_reason\":%s,\"token_ids\":null}]}", head, one->chunk, (unsigned long long)now_us(),
             (unsigned long long)ticket_of(one), is_last ? "\"stop\",\"stop_reason\":null" : "null");
    if (send_event(one, text)) return -1;
  }
  if (is_last) return end_stream(one, head);
  one->due_us += gap_us;
  if (one->due_us < now) one->due_us = now;
  return 0;
}

/* ------------------------------------------------------------------------------------------ requests */
static int is_true(const char *body, size_t length, const char *name) { /* "name" : true */
  const char *end = body + length, *at = body;
  while ((at = memmem(at, end - at, name, strlen(name)))) {
    at += strlen(name);
    while (at < end && (*at == ' ' || *at == ':' || *at == '\n' || *at == '\t')) at++;
    if (end - at >= 4 && !memcmp(at, "true", 4)) return 1;
  }
  return 0;
}

static uint64_t find_ticket(const char *body, size_t length) {
  for (const char *end = body + length, *at = body; (at = memchr(at, '#', end - at)); at++) {
    int digits = 0;
    while (digits < TICKET_DIGITS && at + 1 + digits < end && at[1 + digits] >= '0' && at[1 + digits] <= '9') digits++;
    if (digits == TICKET_DIGITS) return strtoull(at + 1, 0, 10);
  }
  return 0;
}

static void set_from(const char *line, size_t length, const char *name, uint64_t *value) {
  const char *found = memmem(line, length, name, strlen(name));
  if (found) *value = strtoull(found + strlen(name), 0, 10);
}

static int configure(connection *one, const char *line, size_t length) {
  char body[256];
  uint64_t count = chunks, fault = fault_now;
  set_from(line, length, "chunks=", &count);
  set_from(line, length, "gap_us=", &gap_us);
  set_from(line, length, "delay_us=", &delay_us);
  set_from(line, length, "fault=", &fault);
  chunks = count;
  fault_now = fault;
  snprintf(body, sizeof body, "{\"chunks\":%d,\"gap_us\":%llu,\"delay_us\":%llu,\"fault\":%d}", chunks,
           (unsigned long long)gap_us, (unsigned long long)delay_us, fault_now);
  return answer(one, "200 OK", "application/json", body);
}

static int describe(const replica *at, char *text, size_t size) {
  return snprintf(text, size, "\"chats\":%llu,\"streams\":%llu,\"streams_done\":%llu,\"hung_up\":%llu,\"probes\":%llu,"
                  "\"others\":%llu,\"connections\":%llu", (unsigned long long)at->chats, (unsigned long long)at->streams,
                  (unsigned long long)at->streams_done, (unsigned long long)at->hung_up, (unsigned long long)at->probes,
                  (unsigned long long)at->others, (unsigned long long)at->connections);
}

static int tell_counts(connection *one) {
  char body[4000] = "{";
  replica all = {0};
  int length = 1;
  for (replica *each = replicas; each < replicas + replica_count; each++) {
    all.chats += each->chats, all.streams += each->streams, all.streams_done += each->streams_done;
    all.hung_up += each->hung_up, all.probes += each->probes, all.others += each->others;
    all.connections += each->connections;
  }
  length += describe(&all, body + length, sizeof body - length);
  length += snprintf(body + length, sizeof body - length, ",\"chats_by_port\":[");
  for (replica *each = replicas; each < replicas + replica_count; each++)
    length += snprintf(body + length, sizeof body - length, "%s%llu", each == replicas ? "" : ",",
                       (unsigned long long)each->chats);
  snprintf(body + length, sizeof body - length, "]}");
  return answer(one, "200 OK", "application/json", body);
}

static int tell_metrics(connection *one) { /* what Tollgate and the routers read of vLLM's */
  char body[2048];
  snprintf(body, sizeof body,
           "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"%s\"} 3.0\n"
           "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\",model_name=\"%s\"} 0.0\n"
           "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"%s\"} 0.12\n"
           "# TYPE vllm:prompt_tokens_total counter\nvllm:prompt_tokens_total{engine=\"0\",model_name=\"%s\"} %llu\n"
           "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total{engine=\"0\",model_name=\"%s\"} %llu\n",
           model, model, model, model, (unsigned long long)one->at->prompt_tokens, model,
           (unsigned long long)one->at->generated_tokens);
  return answer(one, "200 OK", "text/plain; version=0.0.4; charset=utf-8", body);
}

static int complete(connection *one, const char *body, size_t length) {
  one->id = ++id_now * 0x9E3779B97F4A7C15ull;
  one->ticket = find_ticket(body, length);
  one->prompt_tokens = length / 4; /* about what a tokenizer makes of English */
  if (one->is_chat) one->at->chats++;
  else one->at->probes++;
  if (fault_now == STATUS_500 && one->is_chat)
    return answer(one, "500 Internal Server Error", "application/json", "{\"error\":{\"message\":\"as told\",\"code\":500}}");
  if (one->is_chat && is_true(body, length, "\"stream\"")) {
    one->at->streams++;
    one->state = STREAMING;
    one->chunk = 0;
    one->wants_usage = is_true(body, length, "\"include_usage\"");
    one->due_us = now_us() + delay_us;
    arm(one);
    return 0;
  }
  if (!delay_us) return send_completion(one);
  one->state = WAITING;
  one->due_us = now_us() + delay_us;
  arm(one);
  return 0;
}

static int handle(connection *one, const char *line, size_t length, const char *body, size_t body_length) {
#define ASKS(path) memmem(line, length, " " path, strlen(" " path))
  char text[512];
  int posts = !strncmp(line, "POST ", 5);
  one->is_chat = !!memmem(line, length, "/chat/completions", 17);
  if (posts && memmem(line, length, "/completions", 12)) return complete(one, body, body_length);
  one->at->others++;
  if (ASKS("/_config")) return configure(one, line, length);
  if (ASKS("/_stats")) return tell_counts(one);
  if (posts) return answer(one, "404 Not Found", "application/json", "{\"detail\":\"Not Found\"}");
  if (ASKS("/metrics")) return tell_metrics(one);
  if (ASKS("/health") || ASKS("/ping")) return answer(one, "200 OK", "text/plain", "");
  if (ASKS("/version")) return answer(one, "200 OK", "application/json", "{\"version\":\"0.32.0\"}");
  if (ASKS("/v1/models")) {
    snprintf(text, sizeof text, "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1763800000,"
             "\"owned_by\":\"vllm\",\"root\":\"%s\",\"parent\":null,\"max_model_len\":32768,\"permission\":[]}]}", model, model);
    return answer(one, "200 OK", "application/json", text);
  }
  if (ASKS("/get_model_info") || ASKS("/model_info") || ASKS("/get_server_info") || ASKS("/server_info")) {
    /* what sglang's router asks a worker before it sends work there */
    snprintf(text, sizeof text, "{\"model_path\":\"%s\",\"tokenizer_path\":\"%s\",\"served_model_name\":\"%s\",\"version\":\"0.5.0\","
             "\"is_generation\":true}", model, model, model);
    return answer(one, "200 OK", "application/json", text);
  }
  return answer(one, "404 Not Found", "application/json", "{\"detail\":\"Not Found\"}");
}

static const char *header(const char *head, size_t length, const char *name) { /* its value, or 0 */
  size_t size = strlen(name);
  for (const char *line = head, *end = head + length, *next; line < end; line = next) {
    next = memchr(line, '\n', end - line);
    next = next ? next + 1 : end;
    if ((size_t)(next - line) <= size || strncasecmp(line, name, size) || line[size] != ':') continue;
    for (line += size + 1; line < end && *line == ' '; line++) {}
    return line;
  }
  return 0;
}

/* Decodes a chunked body into `into`; returns the bytes that it took of `from`, 0 while it is not whole. */
static size_t dechunk(const char *from, size_t length, char *into, size_t *into_length) {
  const char *at = from, *end = from + length, *line;
  for (*into_length = 0; at < end && (line = memmem(at, end - at, "\r\n", 2));) {
    size_t size = strtoul(at, 0, 16);
    at = line + 2;
    if ((size_t)(end - at) < size + 2) return 0;
    memcpy(into + *into_length, at, size);
    *into_length += size;
    at += size + 2;
    if (!size) return at - from;
  }
  return 0;
}

static int take_requests(connection *one) { /* -1: close */
  while (one->state == READING && one->in_length) {
    char *head_end = memmem(one->in, one->in_length, "\r\n\r\n", 4), *decoded = 0;
    if (!head_end) return 0;
    size_t head = head_end - one->in + 4, body_length = 0, total = head;
    const char *value, *body = one->in + head;
    if ((value = header(one->in, head, "content-length"))) {
      total = head + (body_length = strtoul(value, 0, 10));
      if (one->in_length == head && total > head && header(one->in, head, "expect"))
        put(one, "HTTP/1.1 100 Continue\r\n\r\n", 25);
      if (one->in_length < total) return 0;
    } else if ((value = header(one->in, head, "transfer-encoding")) && !strncasecmp(value, "chunked", 7)) {
      decoded = grown(0, one->in_length + 1);
      size_t took = dechunk(body, one->in_length - head, decoded, &body_length);
      if (!took) return free(decoded), 0;
      body = decoded;
      total = head + took;
    }
    value = header(one->in, head, "connection");
    one->closes = value && !strncasecmp(value, "close", 5);
    const char *line_end = memchr(one->in, '\r', head);
    int is_dead = handle(one, one->in, line_end - one->in, body, body_length);
    free(decoded);
    if (is_dead) return -1;
    memmove(one->in, one->in + total, one->in_length -= total);
    if (one->state == READING && one->closes) return -1;
  }
  return 0;
}

/* ---------------------------------------------------------------------------------------- the one loop */
static void accept_all(replica *at) {
  for (int fd; (fd = accept4(at->fd, 0, 0, SOCK_NONBLOCK)) >= 0;) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &ONE, sizeof ONE);
    connection *one = calloc(1, sizeof *one);
    if (!one) abort();
    *one = (connection){.fd = fd, .at = at, .place = -1, .in_capacity = 16384, .in = grown(0, 16384)};
    at->connections++;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  }
}

static int receive(connection *one) { /* -1: close */
  for (;;) {
    if (one->in_length + 8192 > one->in_capacity) one->in = grown(one->in, one->in_capacity *= 2);
    size_t room = one->in_capacity - one->in_length;
    ssize_t got = recv(one->fd, one->in + one->in_length, room, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return -1;
    if (got > 0) one->in_length += got;
    if (got < (ssize_t)room) return take_requests(one);
  }
}

static void run_timers(void) {
  for (uint64_t now = now_us(); heap_length && heap[0]->due_us <= now;) {
    connection *one = heap[0];
    disarm(one);
    int outcome = one->state == WAITING ? (send_completion(one) ? -1 : 1) : step_stream(one, now);
    if (outcome == 0) arm(one);
    else if (outcome < 0 || one->closes || take_requests(one)) end_connection(one);
  }
}

static int listen_on(replica *at, int port) {
  struct sockaddr_in address = {
    .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  at->is_listener = 1;
  at->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(at->fd, SOL_SOCKET, SO_REUSEADDR, &ONE, sizeof ONE);
  if (bind(at->fd, (void *)&address, sizeof address) || listen(at->fd, 1024)) return perror("upstream: listen"), 1;
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = at};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, at->fd, &event);
}

int main(int count, char **arguments) {
  signal(SIGPIPE, SIG_IGN);
  signal(SIGINT, SIG_DFL); // it is ended by it, and a shell's background jobs inherit that it is ignored
  epoll = epoll_create1(0);
  for (int i = 1; i < count; i += 2) {
    if (i + 1 < count && !strcmp(arguments[i], "--model")) model = arguments[i + 1];
    else if (i + 1 < count && !strcmp(arguments[i], "--port") && replica_count < PORTS_MAX) {
      if (listen_on(&replicas[replica_count++], atoi(arguments[i + 1]))) return 1;
    } else return fprintf(stderr, "upstream: --model NAME, --port N (up to %d times)\n", PORTS_MAX), 2;
  }
  struct epoll_event events[EVENTS];
  for (;;) {
    struct timespec wait, *until = 0;
    if (heap_length) {
      uint64_t now = now_us(), left = heap[0]->due_us > now ? heap[0]->due_us - now : 0;
      wait = (struct timespec){.tv_sec = left / 1000000, .tv_nsec = left % 1000000 * 1000};
      until = &wait;
    }
    int found = epoll_pwait2(epoll, events, EVENTS, until, 0);
    for (int i = 0; i < found; i++) {
      connection *one = events[i].data.ptr;
      if (one->is_listener) accept_all((replica *)one);
      else if (events[i].events & EPOLLOUT && send_rest(one)) end_connection(one);
      else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && receive(one)) end_connection(one);
    }
    run_timers();
  }
}
