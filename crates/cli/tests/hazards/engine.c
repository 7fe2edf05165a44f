/* A real engine with another allocator linked in: Lua, SQLite or jq as their libraries' archives hold them, each doing the same for ever. */
#include <stddef.h>

#ifdef LUA
#include <lua5.4/lauxlib.h>
#include <lua5.4/lua.h>
#include <lua5.4/lualib.h>
static void run(const char *program)
{
    lua_State *state = luaL_newstate();
    luaL_openlibs(state);
    luaL_dostring(state, program);
}
#elif defined SQLITE
#include <sqlite3.h>
static void run(const char *program)
{
    sqlite3 *base;
    sqlite3_open(":memory:", &base);
    sqlite3_exec(base, program, NULL, NULL, NULL);
}
#else
#include <jq.h>
#include <jv.h>
static void run(const char *program)
{
    jq_state *state = jq_init();
    jq_compile(state, program);
    jq_start(state, jv_null(), 0);
    jq_next(state);
}
#endif

int main(int count, char **arguments)
{
    if (count > 1)
        run(arguments[1]);
    return 1;
}
