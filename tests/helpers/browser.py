"""A page in headless Chromium, driven through the DevTools protocol.

The protocol goes through two pipes, so it takes no package and no port.
"""

import json
import os
import select
import shutil
import subprocess
import time

import pytest

NAMES = (
  'chromium',
  'chromium-browser',
  'chromium-headless-shell',
  'google-chrome',
  'google-chrome-stable',
)
_FLAGS = (
  '--headless',
  '--no-sandbox',  # Root may not have one.
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--hide-scrollbars',
  '--window-size=1280,900',
  '--remote-debugging-pipe',
)
_SECONDS = 120  # For an answer; a busy machine takes its time.
_CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
needs_chromium = pytest.mark.skipif(
  _CHROMIUM is None,
  reason=f'no Chromium in PATH ({", ".join(NAMES)}): apt-get install chromium',
)


class Page:
  """One tab.

  Attributes:
    errors: messages of the console, of scripts and of failed requests.
    requests: requested addresses, except `data:`.
  """

  def __init__(self, profile):
    """Starts the browser with an empty profile in a folder of this name."""
    self.errors, self.requests, self.events = [], [], []
    self._answers, self._count, self._session, self._read = {}, 0, None, b''
    to_read, self._to_write = os.pipe()
    self._from, from_write = os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    script = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    flags = [*_FLAGS, f'--user-data-dir={profile}']
    self._process = subprocess.Popen(
      ['bash', '-c', script, 'browser', _CHROMIUM, *flags],
      pass_fds=(to_read, from_write),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    target = self._ask('Target.createTarget', url='about:blank')['targetId']
    attached = self._ask('Target.attachToTarget', targetId=target, flatten=True)
    self._session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self._ask(f'{domain}.enable')

  def open(self, path):
    """Opens a file, waits until it is loaded, and clears the records."""
    for noted in (self.errors, self.requests, self.events):
      noted.clear()
    self._ask('Page.navigate', url=path.resolve().as_uri())
    self._wait(lambda: 'Page.loadEventFired' in self.events)

  def run(self, expression):
    """The value of a JavaScript expression; waits for a promise."""
    answer = self._ask(
      'Runtime.evaluate',
      expression=expression,
      awaitPromise=True,
      returnByValue=True,
    )
    assert 'exceptionDetails' not in answer, answer
    return answer['result'].get('value')

  def wait(self, expression):
    """Waits until a JavaScript expression is true."""
    end = time.monotonic() + _SECONDS
    while not self.run(expression):
      assert time.monotonic() < end, f'never true: {expression}'
      time.sleep(0.05)

  def click(self, selector):
    """Clicks with the mouse on the first element of a CSS selector."""
    x, y = self.run(
      f"""(() => {{
        const element = document.querySelector({json.dumps(selector)});
        element.scrollIntoView({{block: 'center'}});
        const box = element.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
      }})()"""
    )
    for kind in ('mouseMoved', 'mousePressed', 'mouseReleased'):
      self._ask(
        'Input.dispatchMouseEvent',
        type=kind,
        x=x,
        y=y,
        button='none' if kind == 'mouseMoved' else 'left',
        clickCount=1,
      )

  def press(self, key):
    """Presses a key by its name, such as `ArrowRight`."""
    codes = {'ArrowLeft': 37, 'ArrowRight': 39, 'Escape': 27}
    for kind in ('rawKeyDown', 'keyUp'):
      self._ask(
        'Input.dispatchKeyEvent',
        type=kind,
        key=key,
        code=key,
        windowsVirtualKeyCode=codes[key],
      )

  def close(self):
    """Ends the browser."""
    os.close(self._to_write)
    try:
      self._process.wait(timeout=20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._from)

  def _ask(self, method, **params):
    self._count += 1
    message = {'id': self._count, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._to_write, json.dumps(message).encode() + b'\0')
    self._wait(lambda: message['id'] in self._answers)
    answer = self._answers.pop(message['id'])
    assert 'error' not in answer, answer
    return answer['result']

  def _wait(self, is_done):
    """Reads messages until a condition holds."""
    end = time.monotonic() + _SECONDS
    while not is_done():
      left = end - time.monotonic()
      ready = left > 0 and select.select([self._from], [], [], left)[0]
      chunk = os.read(self._from, 2**20) if ready else b''
      assert chunk, 'The browser does not answer.'
      *messages, self._read = (self._read + chunk).split(b'\0')
      for message in map(json.loads, messages):
        if 'id' in message:
          self._answers[message['id']] = message
        else:
          self._note(message['method'], message['params'])

  def _note(self, method, params):
    self.events.append(method)
    if (
      method == 'Runtime.exceptionThrown'
      or (method == 'Log.entryAdded' and params['entry']['level'] == 'error')
      or (method == 'Runtime.consoleAPICalled' and params['type'] != 'log')
    ):
      self.errors.append(params)
    elif method == 'Network.requestWillBeSent':
      url = params['request']['url']
      if not url.startswith('data:'):
        self.requests.append(url)
