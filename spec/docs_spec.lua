-- The samples of README.md and docs/*.md: every ```lua block runs. The blocks of one file run in order in one environment of their
-- own (what they make global stays in it), in a temporary folder. A block with a comment "-- not run" is only compiled.

local ffi = require "ffi"

pcall(ffi.cdef, "int chdir(const char *path); char *getcwd(char *buffer, size_t size);")

local buffer = ffi.new("char[4096]")
local here = ffi.string(ffi.C.getcwd(buffer, 4096))

local function files()
  local names = {"README.md"}
  local pipe = assert(io.popen("ls docs/*.md"))
  for name in pipe:lines() do names[#names + 1] = name end
  pipe:close()
  return names
end

-- {line, text} of each ```lua block.
local function samples(path)
  local list, open, number = {}, nil, 0
  for line in io.lines(path) do
    number = number + 1
    if not open and line:match("^```lua%s*$") then
      open = {line = number, text = {}}
    elseif open and line:match("^```") then
      list[#list + 1] = {line = open.line, text = table.concat(open.text, "\n")}
      open = nil
    elseif open then
      open.text[#open.text + 1] = line
    end
  end
  assert(not open, path .. ": a block is not closed")
  return list
end

-- Calls fn in an empty folder; files that are still to be loaded are found all the same.
local function in_empty_folder(fn)
  local folder = os.tmpname()
  os.remove(folder)
  assert(os.execute(("mkdir '%s'"):format(folder)) == 0)
  local path, printed = package.path, print
  _G.print = function(...)
    for i = 1, select("#", ...) do tostring((select(i, ...))) end
  end
  package.path = (";" .. path):gsub(";%./", ";" .. here .. "/"):gsub(";(%w)", ";" .. here .. "/%1"):sub(2)
  assert(ffi.C.chdir(folder) == 0)
  local ok, message = xpcall(fn, function(e) return debug.traceback(tostring(e), 2) end)
  ffi.C.chdir(here)
  package.path, _G.print = path, printed
  os.execute(("rm -r '%s'"):format(folder))
  assert(ok, message)
end

for _, path in ipairs(files()) do
  local list = samples(path)
  if #list > 0 then
    describe(path, function()
      it(("runs: %d samples"):format(#list), function()
        local env = setmetatable({}, {__index = _G})
        in_empty_folder(function()
          for _, sample in ipairs(list) do
            -- empty lines in front, so that messages name the line of the page
            local chunk = assert(loadstring(("\n"):rep(sample.line) .. sample.text, "@" .. path))
            setfenv(chunk, env)
            if not sample.text:find("-- not run", 1, true) then chunk() end
          end
        end)
      end)
    end)
  end
end

-- docs/residual.md has what the code has.
describe("docs/residual.md", function()
  local resin = require "resin"
  local file = assert(io.open("docs/residual.md"))
  local page = file:read("*a")
  file:close()

  local function has(text) assert(page:find(text, 1, true), "it lacks " .. text) end

  it("has each operation with its formula", function()
    local combine = require "resin.residual.combine"
    local n = 0
    for name in combine.known():gmatch("[%w_]+") do
      local operation = combine.find(name)
      if operation.builtin then
        n = n + 1
        has(("| `%s` | `%s` |"):format(name, operation.formula))
      end
    end
    assert.is_true(n >= 14)
  end)

  it("has each option", function()
    local function known_of(fn)
      local _, message = pcall(fn)
      local list = assert(message:match("%(known: ([^)]*)%)"), message)
      for name in list:gmatch("[%w_]+") do
        assert(page:find("`[^`\n]*%f[%w_]" .. name .. "%f[^%w_]"), "it lacks the option " .. name)
      end
    end
    local nn = resin.nn
    known_of(function() nn.Record{nope = 1} end)
    known_of(function() nn.Apply{nope = 1} end)
    known_of(function() nn.Residual(nn.Tanh(), {nope = 1}) end)
    known_of(function() nn.residualize(nn.Sequential(nn.Tanh()), {nope = 1}) end)
    known_of(function() nn.SaveInput{"r", nope = 1} end)
    known_of(function() nn.Tanh():visualize{nope = 1} end)
    known_of(function() resin.blocks.ResidualAdd{nn.Tanh(), nope = 1} end)
    for name in pairs(resin.doctor.thresholds) do has("`" .. name .. "`") end
    for _, verdict in ipairs{"vanishing", "exploding", "dead", "skip dominates"} do has(verdict) end
  end)
end)
