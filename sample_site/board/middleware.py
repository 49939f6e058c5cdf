class ContentSecurityPolicyMiddleware:
    """Allow a page only files and WebSockets of this site, and no inline code."""

    policy = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", self.policy)
        return response
