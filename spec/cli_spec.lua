-- The launcher: scripts, code, errors and exit codes.

local build = os.getenv("RESIN_BUILD") or "build"

local function run(arguments)
  local pipe = io.popen(build .. "/resin " .. arguments .. " 2>&1; echo \"rc $?\"")
  local text = pipe:read("*a")
  pipe:close()
  local output, rc = text:match("^(.-)rc (%d+)\n$")
  return output, tonumber(rc)
end

local function with_script(code, fn)
  local path = os.tmpname()
  local f = io.open(path, "w")
  f:write(code)
  f:close()
  local ok, message = pcall(fn, path)
  os.remove(path)
  if not ok then error(message, 0) end
end

describe("the launcher", function()
  it("runs code with arguments", function()
    local output, rc = run("-e 'print(resin.ones(2):sum():item(), ...)' a b")
    assert.equal("2\ta\tb\n", output)
    assert.equal(0, rc)
  end)

  it("runs a script", function()
    with_script("local resin = require 'resin' print(arg[1], ..., resin.is_tensor(resin.ones(1)))", function(path)
      local output, rc = run(path .. " x")
      assert.equal("x\tx\ttrue\n", output)
      assert.equal(0, rc)
    end)
  end)

  it("says its version", function()
    local output, rc = run("-v")
    assert.truthy(output:find("^resin %d+%.%d+%.%d+"))
    assert.equal(0, rc)
  end)

  it("fails with 1 and the user's frames alone", function()
    with_script("local resin = require 'resin'\nlocal function f(x) return x + resin.ones(3) end\nlocal y = f(resin.ones(2))\n",
      function(path)
        local output, rc = run(path)
        assert.equal(1, rc)
        assert.truthy(output:find("error: " .. path .. ":2: add: ", 1, true), output)
        assert.truthy(output:find(path .. ":3: in main chunk", 1, true), output)
        assert.is_nil(output:find("check.lua", 1, true), output)
      end)
    for arguments, text in pairs { ["nowhere.lua"] = "cannot open nowhere.lua", ["-x"] = "unknown option -x",
                                   ["-e 'x = ('"] = "unexpected symbol", ["-e"] = "-e needs code" } do
      local output, rc = run(arguments)
      assert.equal(1, rc)
      assert.truthy(output:find(text, 1, true), output)
    end
  end)

  it("reads the environment", function()
    local output = run("-e 'print(resin.get_num_threads(), resin.get_isa())'")
    assert.truthy(output:find("^1\t"))
    local pipe = io.popen("RESIN_THREADS=2 RESIN_ISA=baseline " .. build .. "/resin -e 'print(resin.get_num_threads(), resin.get_isa())'")
    assert.equal("2\tbaseline\n", pipe:read("*a"))
    pipe:close()
    for setting, text in pairs { RESIN_THREADS = "RESIN_THREADS must be a positive integer, got x",
                                 RESIN_LIB = "RESIN_LIB names x, which does not exist", RESIN_ISA = "x" } do
      pipe = io.popen(setting .. "=x " .. build .. "/resin -e 'print(1)' 2>&1")
      local message = pipe:read("*a")
      pipe:close()
      assert.truthy(message:find(text, 1, true), message)
    end
  end)
end)
