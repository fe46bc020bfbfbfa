# The policy of the benchmark: readers of /small with the role `user` and a token for `shop`.
package bench.authz

import rego.v1

request := input.attributes.request.http

token := substring(request.headers.authorization, count("Bearer "), -1) if {
	startswith(request.headers.authorization, "Bearer ")
}

claims := payload if {
	[valid, _, payload] := io.jwt.decode_verify(token, {
		"cert": data.settings.keys,
		"iss": data.settings.issuer,
		"aud": "shop",
	})
	valid
}

path := split(request.path, "?")[0]

default decision := {"allowed": false}

decision := {"allowed": true, "headers": {"x-auth-user": claims.sub}} if {
	request.method in {"GET", "HEAD"}
	path_below("/small")
	"user" in claims.roles
}

path_below(prefix) if path == prefix

path_below(prefix) if startswith(path, concat("", [prefix, "/"]))
