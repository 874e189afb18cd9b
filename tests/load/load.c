/* How many requests does a gateway answer rightly, and how late?
 *
 *   cc -O2 -o load load.c
 *   ./load closed --port 8080 --bodies bodies.jsonl --connections 32 --seconds 4      each connection asks again at once
 *   ./load open   --port 8080 --bodies bodies.jsonl --rate 100 --seconds 5            a fixed schedule
 *   ./load stream --port 8080 --bodies streams.jsonl --connections 200 --chunks 64    each connection streams again
 *
 *   --path /v1/chat/completions   --header "name: value" (several)   --tickets-from 1
 *   --vary "name: value" (several): bodies 0 and 1 of the file get the first, 2 and 3 the second, and so on
 *   --stagger-us N: the first requests are spread over so many microseconds
 *   --tally NAME: count the values of that answer header   --cost: add up what Tollgate says that answers cost
 *
 * A client for `upstream`: one thread, epoll, keep-alive connections. Each line of the bodies file is a body with
 * `#000000000000` in it, into which the request's ticket is written, so that no two bodies are the same and no
 * answer can come from anybody's memory. Every answer is read and verified: status 200, the message properly ended,
 * its own ticket, a usage; of a stream, all chunks in order, each with its ticket, usage and [DONE]. A request ends in
 * exactly one way: ok, status, incomplete, broken (the connection ended before the answer began) or unfinished (GRACE_US
 * after the end); the sum is checked. In an open loop latency counts from the scheduled instant, so that a gateway
 * that stalls cannot hide it. Prints one JSON object; microseconds. No TLS; loopback only. */
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
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define GRACE_US 15000000ull
#define LATE_US 5000
enum { BODIES_MAX = 4096, VARY_MAX = 16, TALLY_MAX = 16, TICKET_DIGITS = 12, CHUNK_CHARS = 33, EVENTS = 256, FAILURES_MAX = 2000 };
enum step { IDLE, HEAD, SIZED, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, UNTIL_CLOSED };
enum mode { CLOSED, OPEN, STREAM };

typedef struct { uint32_t *values; size_t count, capacity; } samples;
typedef struct { char *text; size_t length, ticket_at; } request;
typedef struct { char value[48]; uint64_t count; } tally;

typedef struct {
  int fd, is_new, closes, status;
  enum step step;
  char head[16384], size[24], *text; /* text: the line of a stream so far, or the whole plain answer */
  size_t head_length, size_length, text_length, text_capacity;
  uint64_t left, ticket, started_us, last_chunk_us, cost_nanos;
  int next_chunk, is_wrong, has_usage, is_done, events;
} connection;

static enum mode mode;
static int epoll, port, connection_limit = 32, connection_count, idle_count, chunks = 64, adds_cost;
static const char *tally_name;
static request requests[BODIES_MAX];
static int request_count, tally_count;
static tally tallies[TALLY_MAX];
static connection **idle;
static uint64_t sent, ok, bad_status, incomplete, broken, late, chunks_ok, events_seen, bytes, cost_nanos, connects, stray, next_ticket = 1;
static samples latency, first_chunk, chunk_delay, chunk_gap, whole_stream;
static char example[600];

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

static void fail(const char *text) {
  fprintf(stderr, "load: %s\n", text);
  exit(2);
}

/* ------------------------------------------------------------------------------------------- samples */
static void add(samples *all, uint64_t value) {
  if (all->count == all->capacity)
    all->values = grown(all->values, (all->capacity = all->capacity * 2 + 65536) * sizeof *all->values);
  all->values[all->count++] = value > UINT32_MAX ? UINT32_MAX : value;
}

static int compare(const void *one, const void *other) {
  uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
  return a < b ? -1 : a > b;
}

static void print_samples(const char *name, samples *all) {
  double sum = 0;
  if (!all->count) {
    printf(",\"%s\":null", name);
    return;
  }
  qsort(all->values, all->count, sizeof *all->values, compare);
  for (size_t i = 0; i < all->count; i++) sum += all->values[i];
#define QUANTILE(share) all->values[(size_t)((all->count - 1) * (share))]
  printf(",\"%s\":{\"count\":%zu,\"mean\":%.1f,\"min\":%u,\"p50\":%u,\"p90\":%u,\"p99\":%u,\"max\":%u}", name, all->count,
         sum / all->count, all->values[0], QUANTILE(.5), QUANTILE(.9), QUANTILE(.99), all->values[all->count - 1]);
}

/* ----------------------------------------------------------------------------------------- connections */
static int open_connection(connection *one) { /* -1: refused */
  struct sockaddr_in address = {
    .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int on = 1;
  one->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(one->fd, (void *)&address, sizeof address) && errno != EINPROGRESS) {
    close(one->fd);
    one->fd = -1;
    return -1;
  }
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
  epoll_ctl(epoll, EPOLL_CTL_ADD, one->fd, &event);
  one->is_new = 1;
  connects++;
  return 0;
}

static connection *new_connection(void) {
  connection *one = calloc(1, sizeof *one);
  if (!one) abort();
  one->fd = -1;
  one->text = grown(0, one->text_capacity = 65536);
  connection_count++;
  return one;
}

static void hang_up(connection *one) {
  if (one->fd >= 0) close(one->fd);
  one->fd = -1;
  one->step = IDLE;
}

static int send_request(connection *one, uint64_t started_us) { /* -1: it counts as broken */
  one->ticket = next_ticket++;
  const request *what = &requests[sent++ % request_count];
  char digits[TICKET_DIGITS + 1];
  snprintf(digits, sizeof digits, "%012llu", (unsigned long long)one->ticket % 1000000000000ull);
  memcpy(what->text + what->ticket_at, digits, TICKET_DIGITS);
  if (one->fd < 0 && open_connection(one)) return broken++, -1;
  if (one->is_new) { /* on loopback it is connected at once, or nobody listens */
    struct timeval patience = {2, 0};
    fd_set writable;
    FD_ZERO(&writable);
    FD_SET(one->fd, &writable);
    select(one->fd + 1, 0, &writable, 0, &patience);
    one->is_new = 0;
  }
  one->step = HEAD;
  one->head_length = one->text_length = one->size_length = 0;
  one->next_chunk = 1;
  one->status = 0;
  one->is_wrong = one->has_usage = one->is_done = one->events = 0;
  one->last_chunk_us = one->cost_nanos = 0;
  one->started_us = started_us;
  for (size_t done = 0; done < what->length;) {
    ssize_t wrote = send(one->fd, what->text + done, what->length - done, MSG_NOSIGNAL);
    if (wrote >= 0) done += wrote;
    else if (errno == EAGAIN) usleep(100);
    else if (errno != EINTR) return hang_up(one), broken++, -1;
  }
  return 0;
}

/* -------------------------------------------------------------------------------------------- answers */
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

static uint64_t nanos(const char *text) { /* of "0.000044400" */
  uint64_t value = 0;
  int decimals = -1;
  for (; (*text >= '0' && *text <= '9') || (*text == '.' && decimals < 0); text++) {
    if (*text == '.') decimals = 0;
    else if (decimals < 9) value = value * 10 + (*text - '0'), decimals += decimals >= 0;
  }
  for (decimals = decimals < 0 ? 0 : decimals; decimals < 9; decimals++) value *= 10;
  return value;
}

static void count_value(const char *value) {
  size_t length = strcspn(value, "\r\n");
  if (length >= sizeof tallies[0].value) length = sizeof tallies[0].value - 1;
  for (int i = 0; i < TALLY_MAX; i++) {
    if (i == tally_count) memcpy(tallies[tally_count++].value, value, length);
    if (strlen(tallies[i].value) != length || memcmp(tallies[i].value, value, length)) continue;
    tallies[i].count++;
    return;
  }
}

static void keep_example(const char *text, size_t length) {
  if (!example[0]) snprintf(example, sizeof example, "%.*s", (int)(length > 500 ? 500 : length), text);
}

static void read_event(connection *one, uint64_t now) { /* one line of a stream, without its end */
  const char *line = one->text, *end = line + one->text_length;
  if (one->text_length < 5 || memcmp(line, "data:", 5)) return;
  one->events++;
  events_seen++;
  if (memmem(line, end - line, "[DONE]", 6)) {
    one->is_done = 1;
    return;
  }
  if (one->is_done) one->is_wrong = 1;
  if (memmem(line, end - line, "\"completion_tokens\"", 19)) one->has_usage = 1;
  const char *cost = adds_cost ? memmem(line, end - line, "\"cost_usd\":\"", 12) : 0;
  if (cost) one->cost_nanos = nanos(cost + 12);
  for (const char *at = line; (at = memchr(at, 'w', end - at)); at++) {
    if (end - at < CHUNK_CHARS || at[4] != '@' || at[20] != '#' || at[1] < '0' || at[1] > '9') continue;
    uint64_t sent_us = strtoull(at + 5, 0, 10);
    if (atoi(at + 1) == one->next_chunk && strtoull(at + 21, 0, 10) == one->ticket) chunks_ok++, one->next_chunk++;
    else one->is_wrong = 1;
    add(&chunk_delay, now > sent_us ? now - sent_us : 0);
    if (one->last_chunk_us) add(&chunk_gap, now - one->last_chunk_us);
    else add(&first_chunk, now - one->started_us);
    one->last_chunk_us = now;
    at += CHUNK_CHARS - 1;
  }
}

static void keep_text(connection *one, const char *from, size_t length) {
  if (one->text_length + length + 1 > one->text_capacity)
    one->text = grown(one->text, one->text_capacity = (one->text_length + length) * 2);
  memcpy(one->text + one->text_length, from, length);
  one->text[one->text_length += length] = 0;
}

static void read_body(connection *one, const char *from, size_t length, uint64_t now) {
  bytes += length;
  if (one->status != 200) keep_example(from, length);
  for (const char *line; mode == STREAM && one->status == 200 && (line = memchr(from, '\n', length));) {
    keep_text(one, from, line - from);
    read_event(one, now);
    one->text_length = 0;
    length -= line + 1 - from;
    from = line + 1;
  }
  keep_text(one, from, length);
}

static int is_right(connection *one) {
  char ticket[TICKET_DIGITS + 2];
  if (mode == STREAM) return one->is_done && one->has_usage && !one->is_wrong && one->next_chunk == chunks + 1;
  snprintf(ticket, sizeof ticket, "#%012llu", (unsigned long long)one->ticket);
  return memmem(one->text, one->text_length, ticket, TICKET_DIGITS + 1) &&
         memmem(one->text, one->text_length, "\"completion_tokens\"", 19);
}

static void finish(connection *one, int is_proper, uint64_t now) {
  char what[160];
  one->step = IDLE;
  if (one->status && one->status != 200) bad_status++;
  else if (is_proper && is_right(one)) {
    ok++;
    cost_nanos += one->cost_nanos;
    add(mode == STREAM ? &whole_stream : &latency, now - one->started_us);
  } else {
    incomplete++;
    int length = snprintf(what, sizeof what, "ended properly: %d, [DONE]: %d, usage: %d, in order: %d, chunks: %d, events: %d",
                          is_proper, one->is_done, one->has_usage, !one->is_wrong, one->next_chunk - 1, one->events);
    if (mode == STREAM) keep_example(what, length);
    else keep_example(one->text, one->text_length);
  }
  if (one->closes || !is_proper) hang_up(one);
}

static int read_head(connection *one) { /* the body's bytes may follow */
  const char *value;
  one->status = atoi(one->head + 9);
  if (one->status == 100) {
    one->head_length = 0;
    return 0;
  }
  value = header(one->head, one->head_length, "connection");
  one->closes = value && !strncasecmp(value, "close", 5);
  if (tally_name && (value = header(one->head, one->head_length, tally_name))) count_value(value);
  if (adds_cost && (value = header(one->head, one->head_length, "x-tollgate-cost-usd"))) one->cost_nanos = nanos(value);
  value = header(one->head, one->head_length, "transfer-encoding");
  if (value && !strncasecmp(value, "chunked", 7)) one->step = CHUNK_SIZE;
  else if ((value = header(one->head, one->head_length, "content-length"))) {
    one->left = strtoull(value, 0, 10);
    one->step = SIZED;
    return !one->left;
  } else one->step = UNTIL_CLOSED;
  return 0;
}

static void feed(connection *one, const char *from, size_t length, uint64_t now) {
  while (length && one->step != IDLE) {
    size_t taken = length < one->left ? length : one->left;
    switch (one->step) {
      case HEAD: {
        size_t old = one->head_length, room = sizeof one->head - 1 - old;
        taken = length < room ? length : room;
        memcpy(one->head + old, from, taken);
        one->head[old + taken] = 0;
        char *end = strstr(one->head, "\r\n\r\n");
        if (!end && taken == room) return hang_up(one), (void)incomplete++;
        one->head_length = end ? (size_t)(end + 4 - one->head) : old + taken;
        if (end) taken = one->head_length - old;
        if (end && read_head(one)) finish(one, 1, now);
        break;
      }
      case SIZED:
        read_body(one, from, taken, now);
        if (!(one->left -= taken)) finish(one, 1, now);
        break;
      case UNTIL_CLOSED: read_body(one, from, taken = length, now); break;
      case CHUNK_SIZE:
        taken = 1;
        if (*from == '\n') {
          one->size[one->size_length] = 0;
          one->size_length = 0;
          one->left = strtoull(one->size, 0, 16);
          one->step = one->left ? CHUNK : TRAILER;
        } else if (one->size_length < sizeof one->size - 1) one->size[one->size_length++] = *from;
        break;
      case CHUNK:
        read_body(one, from, taken, now);
        if (!(one->left -= taken)) one->step = CHUNK_END, one->left = 2;
        break;
      case CHUNK_END:
        if (!(one->left -= taken)) one->step = CHUNK_SIZE;
        break;
      case TRAILER: /* size_length: characters of the line so far */
        taken = 1;
        if (*from == '\n' && !one->size_length) finish(one, 1, now);
        else if (*from == '\n') one->size_length = 0;
        else if (*from != '\r') one->size_length++;
        break;
      case IDLE: break;
    }
    from += taken;
    length -= taken;
  }
  stray += length; /* bytes that belong to no answer */
}

static void receive(connection *one) { /* afterwards it is idle, or waits for more */
  static char buffer[1 << 18];
  while (one->fd >= 0) {
    ssize_t got = recv(one->fd, buffer, sizeof buffer, 0);
    if (got > 0) {
      feed(one, buffer, got, now_us());
      if (one->step == IDLE || got < (ssize_t)sizeof buffer) return;
    } else if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      return;
    } else if (one->step == UNTIL_CLOSED) {
      return finish(one, 1, now_us()), hang_up(one);
    } else {
      if (one->step == HEAD && !one->head_length) broken++;
      else if (one->step != IDLE) finish(one, 0, now_us());
      return hang_up(one);
    }
  }
}

/* -------------------------------------------------------------------------------------------- the load */
static void read_bodies(const char *file, const char *path, const char *headers, char **vary, int vary_count) {
  FILE *from = fopen(file, "r");
  char *line = 0;
  size_t capacity = 0;
  ssize_t length;
  if (!from) fail("the bodies file cannot be read");
  while ((length = getline(&line, &capacity, from)) > 0 && request_count < BODIES_MAX) {
    if (line[length - 1] == '\n') length--;
    char *one = grown(0, length + strlen(headers) + strlen(path) + 1024);
    int head = sprintf(one, "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nuser-agent: tollgate-load\r\naccept: application/json\r\n%s%s%s"
                       "content-type: application/json\r\ncontent-length: %zd\r\n\r\n", path, port, headers,
                       vary_count ? vary[request_count / 2 % vary_count] : "", vary_count ? "\r\n" : "", length);
    memcpy(one + head, line, length);
    char *ticket = memmem(one + head, length, "#000000000000", TICKET_DIGITS + 1);
    if (!ticket) fail("a body has no ticket, #000000000000");
    requests[request_count++] = (request){.text = one, .length = head + length, .ticket_at = ticket + 1 - one};
  }
  free(line);
  fclose(from);
  if (!request_count) fail("the bodies file is empty");
}

static void print_result(double seconds, uint64_t unfinished) {
  static const char *names[] = {"closed", "open", "stream"};
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  double cpu_s = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
  if (sent != ok + bad_status + incomplete + broken + unfinished) fail("a request was counted twice, or not at all");
#define COUNT(name, value) printf(",\"" name "\":%llu", (unsigned long long)(value))
  printf("{\"mode\":\"%s\",\"seconds\":%.3f,\"per_second\":%.1f,\"load_cpu_s\":%.3f", names[mode], seconds, ok / seconds, cpu_s);
  COUNT("sent", sent);
  COUNT("ok", ok);
  COUNT("bad_status", bad_status);
  COUNT("incomplete", incomplete);
  COUNT("broken", broken);
  COUNT("unfinished", unfinished);
  COUNT("late", late);
  COUNT("stray", stray);
  COUNT("connects", connects);
  COUNT("chunks_ok", chunks_ok);
  COUNT("events", events_seen);
  COUNT("bytes", bytes);
  COUNT("cost_usd_nanos", cost_nanos);
  print_samples("latency_us", &latency);
  print_samples("first_chunk_us", &first_chunk);
  print_samples("chunk_delay_us", &chunk_delay);
  print_samples("chunk_gap_us", &chunk_gap);
  print_samples("stream_us", &whole_stream);
  printf(",\"tally\":{");
  for (int i = 0; i < tally_count; i++)
    printf("%s\"%s\":%llu", i ? "," : "", tallies[i].value, (unsigned long long)tallies[i].count);
  printf("},\"example\":\"");
  for (char *at = example; *at; at++)
    if ((unsigned char)*at >= 32) printf(*at == '"' || *at == '\\' ? "\\%c" : "%c", *at);
  printf("\"}\n");
}

/* Sends what is due in a closed loop; returns how long it may wait for answers. */
static uint64_t send_closed(uint64_t now, uint64_t start, uint64_t end, uint64_t stagger_us) {
  static int started;
  while (idle_count && now < end) {
    if (started < connection_limit) {
      uint64_t due = start + stagger_us * started / connection_limit;
      if (due > now) return due - now;
      started++;
    }
    connection *one = idle[--idle_count];
    if (!send_request(one, now_us())) continue;
    idle[idle_count++] = one;
    return 1000; /* nobody listens: not a million times a second */
  }
  return 100000;
}

/* The same in an open loop; `done`: how many of the schedule have been sent. */
static uint64_t send_open(uint64_t now, uint64_t start, double period_us, uint64_t scheduled, uint64_t *done) {
  for (uint64_t due; *done < scheduled && (due = start + (uint64_t)(*done * period_us)) <= now; (*done)++) {
    if (!idle_count && connection_count >= connection_limit) return 1000; /* it waits, and its latency counts on */
    connection *one = idle_count ? idle[--idle_count] : new_connection();
    late += now - due > LATE_US;
    if (send_request(one, due)) idle[idle_count++] = one;
  }
  return *done < scheduled ? start + (uint64_t)(*done * period_us) - now : 100000;
}

static void run(double seconds, double rate, uint64_t stagger_us) {
  uint64_t start = now_us(), end = start + (uint64_t)(seconds * 1e6), scheduled = (uint64_t)(rate * seconds), done = 0;
  struct epoll_event events[EVENTS];
  idle = grown(0, (connection_limit + 1) * sizeof *idle);
  for (int i = 0; mode != OPEN && i < connection_limit; i++) idle[idle_count++] = new_connection();
  for (;;) {
    uint64_t now = now_us(), wait_us = 100000;
    if (mode != OPEN) wait_us = send_closed(now, start, end, stagger_us);
    else wait_us = send_open(now, start, 1e6 / rate, scheduled, &done);
    int is_over = mode == OPEN ? done >= scheduled : now >= end;
    if ((is_over && idle_count == connection_count) || now > end + GRACE_US || broken > FAILURES_MAX) break;
    if (wait_us > 100000) wait_us = 100000;
    struct timespec wait = {.tv_nsec = wait_us * 1000};
    int found = epoll_pwait2(epoll, events, EVENTS, &wait, 0);
    for (int i = 0; i < found; i++) {
      connection *one = events[i].data.ptr;
      if (one->fd < 0) continue;
      int was_asked = one->step != IDLE;
      receive(one);
      if (!was_asked || one->step != IDLE) continue;
      /* Asks again at once, as a closed loop does, but not before its turn at the start. */
      if (mode == OPEN || now_us() >= end || send_request(one, now_us())) idle[idle_count++] = one;
    }
  }
  print_result((now_us() - start) / 1e6, connection_count - idle_count);
}

int main(int count, char **arguments) {
  const char *path = "/v1/chat/completions", *bodies = 0;
  double seconds = 5, rate = 100;
  uint64_t stagger_us = 0;
  char headers[4096] = "", *vary[VARY_MAX];
  int vary_count = 0;
  if (count < 2) fail("closed, open or stream?");
  mode = !strcmp(arguments[1], "stream") ? STREAM : !strcmp(arguments[1], "open") ? OPEN : CLOSED;
  for (int i = 2; i < count; i++) {
    const char *name = arguments[i];
    if (!strcmp(name, "--cost")) {
      adds_cost = 1;
      continue;
    }
    if (++i == count) fail("an option without its value");
    char *value = arguments[i];
    if (!strcmp(name, "--port")) port = atoi(value);
    else if (!strcmp(name, "--path")) path = value;
    else if (!strcmp(name, "--bodies")) bodies = value;
    else if (!strcmp(name, "--connections")) connection_limit = atoi(value);
    else if (!strcmp(name, "--seconds")) seconds = atof(value);
    else if (!strcmp(name, "--rate")) rate = atof(value);
    else if (!strcmp(name, "--chunks")) chunks = atoi(value);
    else if (!strcmp(name, "--stagger-us")) stagger_us = strtoull(value, 0, 10);
    else if (!strcmp(name, "--tickets-from")) next_ticket = strtoull(value, 0, 10);
    else if (!strcmp(name, "--tally")) tally_name = value;
    else if (!strcmp(name, "--vary") && vary_count < VARY_MAX) vary[vary_count++] = value;
    else if (!strcmp(name, "--header") && strlen(headers) + strlen(value) + 3 < sizeof headers)
      strcat(strcat(headers, value), "\r\n");
    else fail("an unknown option, or too many headers");
  }
  if (!bodies) fail("--bodies is missing");
  signal(SIGPIPE, SIG_IGN);
  epoll = epoll_create1(0);
  read_bodies(bodies, path, headers, vary, vary_count);
  run(seconds, rate, stagger_us);
  return 0;
}
