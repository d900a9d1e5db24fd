"""A local HTTP server that resumes, breaks off and lies as a test asks."""

import collections
import contextlib
import http.server
import threading


class Server:
  """What is served and what is done wrong; `url` is its address.

  Attributes:
    files: contents by path. A list is served one by one, the last forever.
    cuts: bytes after which an answer breaks off, by path, one for each request.
    refusals: HTTP errors to answer with first, by path.
    stalls: bytes after which an answer stands still, by path.
    headers: more headers of the answers, by path.
    ranges: whether a part may be asked for.
    requests: (method, path, Range or None) of everything that was asked.
  """

  def __init__(self, files, url):
    self.files = dict(files)
    self.cuts = collections.defaultdict(list)
    self.refusals = collections.defaultdict(list)
    self.stalls = {}
    self.closing = threading.Event()
    self.headers = collections.defaultdict(dict)
    self.ranges = True
    self.requests = []
    self.url = url


@contextlib.contextmanager
def serve(files):
  """Serves files on a free port of this machine; yields the `Server`."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      _answer(self, server)

    def do_HEAD(self):
      _answer_head(self, server)

    def log_message(self, *unused):
      pass

  listener = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server = Server(files, f'http://127.0.0.1:{listener.server_port}')
  thread = threading.Thread(target=listener.serve_forever, args=[0.02])
  thread.start()
  try:
    yield server
  finally:
    server.closing.set()
    listener.shutdown()
    listener.server_close()
    thread.join()


def _answer_head(handler, server):
  path = handler.path.lstrip('/')
  server.requests.append((handler.command, path, None))
  handler.send_response(200 if path in server.files else 404)
  for name, value in server.headers[path].items():
    handler.send_header(name, value)
  handler.end_headers()


def _answer(handler, server):
  path, asked = handler.path.lstrip('/'), handler.headers.get('Range')
  server.requests.append((handler.command, path, asked))
  if server.refusals[path]:
    handler.send_error(server.refusals[path].pop(0))
    return
  content = server.files.get(path)
  if isinstance(content, list):
    content = content.pop(0) if len(content) > 1 else content[0]
  if content is None:
    handler.send_error(404)
    return
  begin, status = 0, 200
  if asked and server.ranges:
    begin = int(asked.removeprefix('bytes=').removesuffix('-'))
    status = 206 if begin < len(content) else 416
  handler.send_response(status)
  for name, value in server.headers[path].items():
    handler.send_header(name, value)
  total = len(content)
  content = content[begin:]
  if status == 206:
    handler.send_header('Content-Range', f'bytes {begin}-{total - 1}/{total}')
  if status == 416:
    handler.send_header('Content-Range', f'bytes */{total}')
  handler.send_header('Content-Length', str(len(content)))
  handler.end_headers()
  if server.cuts[path]:
    content = content[: server.cuts[path].pop(0)]
  if path in server.stalls:
    handler.wfile.write(content[: server.stalls[path]])
    server.closing.wait(60)
    return
  handler.wfile.write(content)
