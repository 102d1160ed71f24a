-- Output of busted for people and for programs: silent while tests pass, each failure with its place and message, and a last
-- line "N passed, N failed".

return function()
  local busted = require "busted"
  local handler = require "busted.outputHandlers.base"()

  local function place(failure)
    local trace = failure.trace
    if not trace or not trace.short_src then return "?" end
    return trace.short_src .. ":" .. tostring(trace.currentline)
  end

  local function print_failure(failure, kind)
    io.write(kind, " ", place(failure), ": ", tostring(failure.name), "\n")
    local message = failure.message
    if type(message) ~= "string" then message = message == nil and "" or require("pl.pretty").write(message) end
    io.write("  ", (message:gsub("\n", "\n  ")), "\n")
    if kind == "ERROR" and failure.trace and failure.trace.traceback then
      io.write("  ", (failure.trace.traceback:gsub("^%s+", ""):gsub("\n", "\n  ")), "\n")
    end
    io.flush()
  end

  handler.suiteEnd = function()
    for _, failure in ipairs(handler.failures) do print_failure(failure, "FAILED") end
    for _, failure in ipairs(handler.errors) do print_failure(failure, "ERROR") end
    if handler.pendingsCount > 0 then io.write(handler.pendingsCount, " pending\n") end
    io.write(("%d passed, %d failed\n"):format(handler.successesCount, handler.failuresCount + handler.errorsCount))
    io.flush()
    return nil, true
  end

  busted.subscribe({ "suite", "end" }, handler.suiteEnd)
  return handler
end
