### default is used when nothing holds
default r := false
r if input.method == "GET"

### a rule without a default is undefined
r if input.method == "GET"

### several bodies are alternatives
default r := false
r if input.method == "GET"
r if input.user == "alice"
r if "admin" in input.roles

### else is tried in order
r := "get" if input.method == "GET"
else := "post" if input.method == "POST"
else := "other"

### a chain of else without an end
r := 1 if input.n == 1 else := 2 if input.n == 7

### complete rules that contradict each other
r := 1 if input.n == 7
r := 2 if input.user == "alice"

### complete rules that agree
r := 1 if input.n == 7
r := 1 if input.user == "alice"

### partial sets collect
r contains role if some role in input.roles
r contains "guest" if not input.user

### partial objects collect
r[name] := count(value) if some name, value in input

### partial objects that contradict each other
r["a"] := 1 if input.n
r["a"] := 2 if input.user

### ref heads build objects
a.b.c := 1
a.b.d := input.n
r := a

### ref heads with variables
a[k].v := v if some k, v in input.o
r := a

### deep ref heads with variables
a[k][v] := true if some k, v in input.o
r := a

### partial sets below refs
a[k] contains v if some k, v in input.o
r := a

### ref heads and a default below
default a.b := 5
a.b := input.n if input.n > 3
r := a.b

### functions
double(x) := x * 2
r := double(input.n)

### functions with several bodies
kind(x) := "number" if is_number(x)
kind(x) := "string" if is_string(x)
r := [k | k := kind(input[_])]

### functions that contradict themselves
f(x) := 1 if x > 1
f(x) := 2 if x > 2
r := f(input.n)

### functions with else
size(x) := "big" if x > 5 else := "small"
r := size(input.n)

### functions with patterns in their arguments
f([a, b]) := a + b
f({"a": a}) := a
r := [f([1, 2]), f({"a": 5})]

### functions with values in their arguments
f("get") := "read"
f("post") := "write"
r := f(lower(input.method))

### default functions
default f(_) := 0
f(x) := 1 if x == "a"
r := [f("a"), f("b")]

### functions that call each other
even(x) if x % 2 == 0
odd(x) if not even(x)
r := [x | some x in numbers.range(1, 6); odd(x)]

### functions that see the input
mine(x) if x == input.user
r := [mine("alice"), 1]

### functions without a value are undefined
f(x) := y if { y := x.a; y > 1 }
r := f({"a": 1})

### some declares variables
r := x if { some i; x := input.l[i]; x > 2 }

### some in lists
r contains x if { some x in input.l; x > 1 }

### some in lists with indices
r[i] := x if some i, x in input.l

### some in objects
r[k] := v if some k, v in input.o

### some in sets
r contains x if some x in {"a", "b", input.user}

### some in strings is nothing
r contains x if some x in input.s

### every of a list
default r := false
r if every x in input.l { x > 0 }

### every with keys
default r := false
r if every k, v in input.o { k != "z"; v }

### every of nothing
default r := false
r if every x in [] { x > 10 }

### every of something undefined
default r := false
r if every x in input.nothing { x > 10 }

### every of something else
default r := false
r if every x in input.s { x == "a" }

### every within every
default r := false
r if every x in input.l { every y in input.l { x + y > 0 } }

### not and undefined
default r := false
r if not input.nothing

### not and false
default r := false
r if not input.b

### not with an expression that fails
default r := false
r if not startswith(input.s, "x")

### not with a variable in a set
default r := false
r if not input.user in {"bob"}

### not of a rule
blocked if input.user == "bob"
r if not blocked

### not of a rule that is false
blocked := false
r if not blocked

### false is not true
r if input.b == false

### a value of null is there
r if { x := null; x == null }

### undefined input in comparisons
default r := "default"
r := "same" if input.q == input.w

### equality binds
r := [a, b] if [a, b] = [1, input.n]

### equality takes objects apart
r := c if {"a": _, "b": {"c": c}} = input.o

### equality of patterns of other lengths
r := a if [a, _] = input.l

### assignment of patterns
r := first if [first | _] := [input.l]

### assignment hides
x := 5
r := y if { x := input.n; y := x }

### wildcards are all different
r if { input.l[_] == 1; input.l[_] == 3 }

### joins over indices
r contains i if { some i; input.l[i] == 3 }

### joins over two lists
r contains x if { some x in input.l; x in [1, 2] }

### iteration over the keys of the input
r contains k if { some k; input[k] == "alice" }

### comprehensions close over variables
r[x] := c if { some x in input.l; c := count([y | some y in input.l; y == x]) }

### comprehensions of objects that contradict themselves
r := {k: v | some v in input.l; k := "same"}

### comprehensions of objects that agree
r := {k: 1 | some k in input.ls}

### sets of sets
r := {{x, y} | some x in input.l; some y in input.l}

### objects with keys that are no strings
r := {1: "a", true: "b", null: "c", [1]: "d", {"x"}: "e"}

### objects with computed keys
r := {input.k: input.n}

### looking up with keys that are no strings
m := {1: "one", [2]: "two", {3}: "three"}
r := [m[1], m[[2]], m[{3}]]

### looking up in sets
s := {"a", ["b"], {"c": 1}}
r := [s["a"], s[["b"]], s[{"c": 1}]]

### with replaces the input
allowed if input.user == "carol"
r := allowed with input.user as "carol"

### with replaces all of the input
n := count(input)
r := n with input as {"a": 1}

### with replaces data
r := x if { x := data.other.value with data.other.value as 5 }

### with replaces built-in functions
r := x if { x := count([1]) with count as 7 }

### with replaces functions by functions
twice(x) := x * 2
thrice(x) := x * 3
r := x if { x := twice(5) with twice as thrice }

### with of several
v := [input.a, input.b]
r := x if { x := v with input.a as 1 with input.b as 2 }

### with in a function
f(_) := input.a
r := x if { x := f(1) with input.a as 9 }

### with within with
a := input.x
b := x if { x := a with input.x as 2 }
r := [b, x] if { x := b with input.x as 3 }

### with adds below what is no object
v := input.l
r := x if { x := v with input.l.q as 1 }

### imports of the input
import input.user as who
r := who

### imports of keywords
import rego.v1
r if input.method in ["GET", "HEAD"]

### imports of data
import data.case.helpers as h
r := h

### data of this package
b := 1
r := data.case.b

### the whole package from within
b := 1
c if input.n == 7
r := [data.case.b, data.case.c]

### rules that use rules that use rules
a if input.n == 7
b if a
c if b
r := [1 | c]

### recursion
r if q
q if r

### recursion of functions
f(x) := x if x < 1
f(x) := y if { x >= 1; y := f(x - 1) }
r := f(3)

### walking over all there is
r contains x if { walk(input, [_, x]); is_number(x) }

### walking with paths
r contains p if walk(input.o, [p, 1])

### counting over undefined
r := count(input.nothing)

### sums over comprehensions
r := sum([x | some x in input.l; x > 1])

### strings built of parts
r := concat("-", [input.user, lower(input.method)])

### paths as OPA-Envoy gives them
default r := false
r if {
    input.segments = ["users", name, "orders"]
    name == input.user
    input.method in {"GET", "HEAD"}
}

### roles with permissions
permissions := {"admin": {"GET", "POST"}, "user": {"GET"}}
default r := false
r if {
    some role in input.roles
    input.method in permissions[role]
}

### reasons for a denial
deny contains "not your orders" if not startswith(input.path, sprintf("/users/%s/", [input.user]))
deny contains "read only" if input.method != "GET"
r := {"allowed": count(deny) == 0, "reasons": deny}

### answers as objects
default r := {"allowed": false, "http_status": 403}
r := {"allowed": true, "headers": {"x-user": input.user, "x-roles": concat(",", input.roles)}} if {
    "admin" in input.roles
}

### answers by cases
r := {"allowed": false, "http_status": 401} if not input.user
else := {"allowed": false, "http_status": 405} if input.method != "GET"
else := {"allowed": true}

### networks of callers
networks := ["10.0.0.0/8", "192.168.0.0/16", "2001:db8::/32"]
default r := false
r if { some network in networks; net.cidr_contains(network, input.ip) }

### office hours
r := h if { ns := time.parse_rfc3339_ns(input.time); [h, _, _] := time.clock(ns) }

### the day of the week
default r := false
r if { day := time.weekday(time.parse_rfc3339_ns(input.time)); not day in {"Saturday", "Sunday"} }

### hosts by glob
default r := false
r if { some pattern in ["*.example.com", "example.org"]; glob.match(pattern, ["."], input.host) }

### paths by pattern
routes := {`^/users/[^/]+$`: {"GET"}, `^/users/[^/]+/orders$`: {"GET", "POST"}}
default r := false
r if { some pattern, methods in routes; regex.match(pattern, input.path); input.method in methods }

### numbers as texts
r := to_number(input.num) + 1

### large numbers
r := input.n * 12345678901234567890

### long sums of fractions
r := sum([0.1, 0.2, 0.3])

### powers by multiplication
r := 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2

### integers beyond 64 bits
r := 18446744073709551616 + 1

### fractions that end
r := 0.5 + 0.25

### negative zero
r := -0.0

### numbers of other forms are the same key
r := {1: "a"}[1.0]

### sorting of mixed values
r := sort([3, "a", null, false, [1], {"a": 1}, 2.5, "A", true])

### sets hold values of all types
r := {1, "1", [1], {"1": 1}, null, true}

### unification both ways
r := [x, y] if { [x, 2] = [1, y] }

### variables that are compared before they are bound
r := x if { x > 2; x := input.n }

### expressions in any order
r := y if { y := z + 1; z := input.n }

### expressions of expressions in keys
r := input.o[concat("", ["a"])]

### references into what functions give
r := split(input.t, "/")[1]

### references into objects that are written out
r := {"a": [1, 2]}.a[1]

### references into comprehensions
r := [x | some x in input.l][0]

### statements that are values
r if input.n

### statements that are false values
r if false

### statements that are zero
r if input.z

### statements that are empty
r if input.e

### strings and escapes
r := "a\\b\"c\/d\u0041"

### strings that are raw
r := `a\nb"c`

### comments and blank lines
# a comment
r := 1 # another

# the end

### many rules of one name
r := 1 if input.n == 1
r := 2 if input.n == 2
r := 7 if input.n == 7

### conditions on the types of things
default r := "neither"
r := "text" if is_string(input.n)
r := "number" if is_number(input.n)

### text of other scripts
r := [upper(input.uni), count(input.uni), substring(input.uni, 0, 2)]

### templates of strings
r := $"{input.user} is here"

### operators as functions
r := count({1} | {2} & {3})

### precedence
r := 1 + 2 * 3 - 4 / 2

### precedence of comparisons
r := 1 + 1 == 2

### and or minus of sets
r := ({1, 2, 3} - {2}) | ({4, 5} & {5})

### sets of the input
r := {x | some x in input.l} - {3}

### contains with an index
r contains {"index": i, "value": v} if some i, v in input.ls

### objects within objects
r := {"a": {"b": {"c": input.n}}}.a.b

### nulls in the input
r := is_null(input.x)

### what is missing is not null
r := is_null(input.nothing)

### deep equality
r if input.o == {"a": 1, "b": {"c": [1, 2]}}

### a type error is undefined
r := upper(input.n)

### a type error in a comprehension
r := [upper(x) | some x in input.ls]

### a type error in a set of alternatives
default r := "default"
r := upper(input.n)

### a type error in a condition
default r := false
r if upper(input.n) == "X"

### adding things of other types
r := input.n + input.s

### adding things of other types with a default
default r := "default"
r := input.n + input.s

### division by zero with a default
default r := "default"
r := 1 / input.z

### division by zero in a negation
r if not 1 / input.z == 5

### a failing parse with a default
default r := "default"
r := json.unmarshal(input.json)

### a failing pattern with a default
default r := false
r if regex.match(input.s, input.path)

### if without a value
r := x if x := input.n

### several values at once
r contains x if { x := [1, 2, 3][_]; x != 2 }

### nested comprehensions
r := [[y | y := x * i; i := 2] | some x in input.l]

### sets within conditions
r if { count({x | some x in input.l}) == count(input.l) }

### min and max of mixed values
r := [min([1, "a", null]), max([1, "a", null])]

### objects are compared by their keys first
r := [{"a": 1} < {"b": 0}, {"a": 1, "b": 1} < {"a": 2}]

### equal numbers of other forms
r := [1 == 1.0, 100 == 1e2, 0 == -0]

### numbers as keys
r := {"1": "text"}[input.k]

### a rule that is a set and is asked for a member
s contains x if some x in input.roles
r := s.admin

### a rule that is an object and is asked for a field
o[k] := v if some k, v in {"admin": 1}
r := o.admin

### a rule of a rule of a function
f(x) := {"y": x}
g(x) := f(x).y
r := g(input.n)

### functions of several arguments
f(x, y, z) := x + y * z
r := f(1, input.n, 3)

### functions with the same argument twice
f(x, x) := "same"
r := f(1, 1)

### functions of no argument
f() := 5
r := f()

### annotations are comments
# METADATA
# title: a rule
r := 1

### negated functions of what is not there
default r := false
r if not startswith(input.nothing, "/admin")

### negated functions of what is not there, in braces
default r := false
r if {
    input.n
    not startswith(input.nothing, "/admin")
}

### negated functions of functions
default r := false
r if not startswith(lower(input.s), "h")

### negated functions of what may be of another type
default r := false
r if not contains(lower(input.s), "w")

### negated comparisons
default r := false
r if not input.n > 5

### negated equality of what is not there
default r := false
r if not input.nothing == 1

### negated equality of functions
default r := false
r if not lower(input.method) == "get"

### negated unequality
default r := false
r if not input.nothing != 1

### negated equality with an index that is not there
default r := false
r if not input.o[input.nothing] == 1

### negated references with an index that is not there
default r := false
r if not input.o[input.nothing]

### negated membership in what is not there
default r := false
r if not "admin" in input.nothing

### negated membership of what is written out
default r := false
r if not input.method in ["GET", input.nothing]

### negated user functions
blocked(user) if user == "bob"
default r := false
r if not blocked(input.user)

### negated rules as arguments
name := input.nothing
blocked(user) if user == "bob"
default r := false
r if not blocked(name)

### negations with another input
default r := false
r if not startswith(input.user, "a") with input.user as "bob"

### negations in comprehensions
r := [x | some x in input.ls; not startswith(x, input.k)]

### negations in every
default r := false
r if every x in input.ls { not startswith(x, input.nothing) }

### negations of comprehensions with negations
default r := false
r if not count([x | some x in input.ls; not startswith(x, input.k)]) == 0

### negations over several lines
default r := false
r if {
    not startswith(
        input.s,
        "Hell",
    )
    input.n
}

### negations with comments
default r := false
r if {
    # not this
    not contains(input.s, "x") # but this
    input.n == 7 # and this
}

### negations in else
r := 1 if not startswith(input.s, "H")
else := 2 if not startswith(input.s, "x")
else := 3

### negations of iterations
default r := false
r if not startswith(input.ls[_], "a")

### negations of local variables
default r := false
r if { x := input.s; not startswith(x, "H") }

### negations of some in
r contains x if { some x in input.ls; not x in input.roles }

### negations in functions
f(x) if not startswith(x, "H")
r := [1 | f(input.s)]

### double negations
a if not input.b
default r := false
r if not a

### negated arithmetic
default r := false
r if not input.n + 1 > 3

### negated parentheses
default r := false
r if not (input.n + 1) == 8

### membership as a value
r := input.user in {"alice"}

### membership as a value in objects
r := {"allowed": input.user in {"alice"}}

### membership as an argument
f(x) := x
r := f(input.user in ["bob"])

### membership of keys and values as a value
r := ("a", 1 in input.o)

### patterns that both understand
r := [m | some p in [`^\d+$`, `^\w+$`, `^[\d.-]+$`, `^\S+$`, `^\W$`]; some v in input; is_string(v); m := [p, v, regex.match(p, v)]]

### globs of all kinds
r := {[p, v] | some p in ["*", "**", "a*", "*.com", "api.*", "*.example.com", "api.**", "", "*/*", "/users/*", "/users/**"]; some v in input; is_string(v); glob.match(p, ["."], v)}

### globs with other delimiters
r := {[p, v] | some p in ["*", "**", "/*", "/*/*/*", "/users/*/orders", "/users/**", "/**", "**/orders", "/users/{alice,bob}/*", "/users/[a-z]*/orders"]; some v in input; is_string(v); glob.match(p, ["/"], v)}

### globs of several delimiters
r := {[p, v] | some p in ["*", "*.*", "*/*", "a*b"]; some v in input; is_string(v); glob.match(p, [".", "/", ":"], v)}

### data of another package
r := count(object.keys(data.case)) > 0

### objects that grow by rules
o.a := 1
o.b := 2 if input.n
o[input.user] := 3
r := o
