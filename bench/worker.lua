-- A process that answers commands, one line each: bench/ours.lua or bench/peers.py. Commands go through a named pipe, because Lua's
-- popen has one direction.

local ffi = require "ffi"

-- A process that died is an answer that does not come, not the end of this one.
ffi.cdef "void (*signal(int number, void (*handler)(int)))(int);"
ffi.C.signal(13, ffi.cast("void (*)(int)", 1))      -- SIGPIPE, SIG_IGN

local Worker = {}
Worker.__index = Worker

local function quote(text) return "'" .. text:gsub("'", [['\'']]) .. "'" end

--- Starts `command`; its standard error goes to the file `log`.
function Worker.start(command, log)
  local fifo = os.tmpname()
  os.remove(fifo)
  assert(os.execute("mkfifo " .. quote(fifo)) == 0, "mkfifo failed")
  local self = setmetatable({}, Worker)
  self.log = log
  self.answers = assert(io.popen(("%s <%s 2>>%s"):format(command, quote(fifo), quote(log))))
  self.commands = assert(io.open(fifo, "w"))
  os.remove(fifo)
  return self
end

--- Sends a command and gives the words of the answer; nil and a message when it failed.
function Worker:ask(...)
  self.commands:write(table.concat({ ... }, " "), "\n")
  self.commands:flush()
  local line = self.answers:read "*l"
  if not line then return nil, "the process ended; see " .. self.log end
  local problem = line:match "^failed (.*)"
  if problem then return nil, problem end
  local words = {}
  for word in line:gmatch "%S+" do words[#words + 1] = word end
  return words
end

--- Ends the process. It is told to: the end of the pipe is no sign, because processes started later hold it open too.
function Worker:stop()
  self.commands:write "quit\n"
  self.commands:close()
  self.answers:close()
end

return Worker
