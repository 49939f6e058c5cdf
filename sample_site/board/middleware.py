class ContentSecurityPolicyMiddleware:
    """Allow a page what comes from this site in files of its own, sockets included; no more."""

    policy = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", self.policy)
        return response
